"""The sheet of scenes that examples/scene_sheet.py draws."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma.scenes import THINGS, SceneOptions, draw_scene

SCRIPT = Path(__file__).parents[2] / "examples" / "scene_sheet.py"
GAP_PX = 6


def test_the_sheet_shows_things_unless_none_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sheet(*words: str) -> np.ndarray:
        out = tmp_path / "sheet.png"
        monkeypatch.setattr(sys, "argv", ["scene_sheet.py", str(out), "--rows", "1", *words])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return np.asarray(Image.open(out))

    scenes = [draw_scene(seed, SceneOptions(thing_share=0.6)) for seed in range(6)]
    assert any(item.label in THINGS for scene in scenes for item in scene.objects)
    shown = sheet()
    assert shown.shape == (224 + GAP_PX, 6 * (224 + GAP_PX), 3)
    for k, scene in enumerate(scenes):
        left = k * (224 + GAP_PX)
        assert np.array_equal(shown[:224, left : left + 224], scene.image)
    plain = sheet("--thing-share", "0")
    assert np.array_equal(plain[:224, :224], draw_scene(0, SceneOptions()).image)
