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
    """Colours of many kinds beside one another everywhere, with some noise of a camera."""
    y, x = np.mgrid[:300, :400] / 400
    waves = [np.sin(9 * x + 7 * y), np.sin(11 * y - 8 * x), np.sin(13 * x * y + 2)]
    noise = np.random.default_rng(0).normal(0, 30, (300, 400, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def test_tiny_says_once_that_it_knows_no_photographs(caplog: pytest.LogCaptureFixture) -> None:
    pg = PaliGemma.from_pretrained("tiny")
    scenes = [
        draw_scene(seed, SceneOptions(size_px=224, thing_share=share)).image
        for seed in range(12)
        for share in (0.0, 0.6)
    ]
    for drawn in (DESK, *scenes):
        pg.encode_image(drawn)
    assert SAID not in caplog.text
    for _ in range(2):
        pg.encode_image(photograph())
    assert caplog.text.count(SAID) == 1


def test_a_photograph_of_the_real_world_is_one(caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    # Roofs before a bright sky.
    PaliGemma.from_pretrained("tiny").encode_image(datasets.load_sample_image("china.jpg"))
    assert SAID in caplog.text


def test_a_model_of_ones_own_says_nothing_of_photographs(
    tiny_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PaliGemma.from_pretrained(tiny_dir).encode_image(Image.fromarray(photograph()))
    assert SAID not in caplog.text
