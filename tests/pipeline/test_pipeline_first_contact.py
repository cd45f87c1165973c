"""What a newcomer is told who shows the embedded model a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_folder import DESK

from paligemma import PaliGemma
from paligemma.scenes import SceneOptions, draw_scene

SAID = "tiny knows drawn scenes only"


def photograph() -> np.ndarray:
    """Colours that run into one another with some noise, as those of a camera."""
    y, x = np.mgrid[:300, :400] / 400
    colours = np.stack([x, y, 1 - x * y], -1) * 200 + np.sin(40 * x * y)[..., None] * 30
    noise = np.random.default_rng(0).normal(0, 8, colours.shape)
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def test_tiny_says_once_that_it_knows_no_photographs(caplog: pytest.LogCaptureFixture) -> None:
    pg = PaliGemma.from_pretrained("tiny")
    scenes = [draw_scene(seed, SceneOptions(size_px=224)).image for seed in range(12)]
    for drawn in (DESK, *scenes):
        pg.encode_image(drawn)
    assert SAID not in caplog.text
    for _ in range(2):
        pg.encode_image(photograph())
    assert caplog.text.count(SAID) == 1


def test_a_model_of_ones_own_says_nothing_of_photographs(
    tiny_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PaliGemma.from_pretrained(tiny_dir).encode_image(Image.fromarray(photograph()))
    assert SAID not in caplog.text
