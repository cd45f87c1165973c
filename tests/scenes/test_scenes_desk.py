"""The picture of the demo is the one its script draws, and shows what the demo asks for."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(EXAMPLES / "make_desk.py"))


def test_the_desk_picture_is_what_its_script_draws(script):
    stored = np.asarray(Image.open(EXAMPLES / "desk.png")).astype(int)
    assert stored.shape == (480, 640, 3)
    # Another Pillow may round a resampled background differently by a step.
    assert np.abs(stored - script["desk"]().image).mean() < 1.0


def test_the_desk_shows_two_heldout_digits_a_sign_and_three_shapes(script):
    named = [(o.color, o.label, o.text) for o in script["desk"]().objects]
    assert named == [
        ("red", "circle", ""),
        ("yellow", "sign", "HELLO"),
        ("blue", "star", ""),
        ("white", "digit", "5"),
        ("purple", "digit", "2"),
        ("green", "heart", ""),
    ]
    assert script["heldout_digit"](5, 2) % 5 == 0


def test_desk_objects_stay_large_enough_when_the_picture_is_shrunk_to_224(script):
    for item in script["desk"]().objects:
        y0, x0, y1, x1 = item.box_yxyx
        assert min(y1 - y0, x1 - x0) * 224 >= 26
