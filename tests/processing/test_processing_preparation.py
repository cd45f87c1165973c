"""A picture becomes the model's input: padded, resized, marked, in [-1, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paligemma.errors import ConfigError
from paligemma.processing.preparation import Preparation, outline_box, pad_to_square
from paligemma.processing.resize import BICUBIC, BILINEAR, BILINEAR_ANTIALIAS, resize

PICTURE = np.random.default_rng(7).integers(0, 256, (50, 80, 3), np.uint8)


def _prepared(**changes: Any) -> np.ndarray:
    options: dict[str, Any] = {"size_px": 30, "resize_method": BILINEAR, **changes}
    return Preparation(**options).prepare(PICTURE)


@pytest.mark.parametrize("method", [BICUBIC, BILINEAR, BILINEAR_ANTIALIAS])
def test_pictures_are_resized_by_the_named_method(method: str) -> None:
    expected = resize(PICTURE, 30, method).astype(np.float32) / 255 * 2 - 1
    assert np.abs(_prepared(resize_method=method) - expected).max() < 1e-6


def test_an_unknown_method_is_refused_before_any_picture_comes() -> None:
    with pytest.raises(ConfigError, match="resize method must be one of"):
        Preparation(size_px=30, resize_method="nearest")


def test_fractions_of_grey_levels_are_kept_on_request() -> None:
    whole, fine = _prepared(), _prepared(keep_fractions=True)
    levels = (fine + 1) / 2 * 255 - (whole + 1) / 2 * 255
    assert levels.min() > -1e-3
    assert 0.5 < levels.max() < 1.0
    # Pillow rounds by itself, so that no fraction is left to be kept.
    bicubic = _prepared(resize_method=BICUBIC, keep_fractions=True)
    assert (bicubic == _prepared(resize_method=BICUBIC)).all()


def test_padding_is_white_on_the_right_or_below() -> None:
    wide = np.zeros((2, 4, 3), np.uint8)
    assert pad_to_square(wide).tolist() == [[[0] * 3] * 4] * 2 + [[[255] * 3] * 4] * 2
    tall = np.zeros((3, 1, 3), np.uint8)
    assert pad_to_square(tall).tolist() == [[[0] * 3, [255] * 3, [255] * 3]] * 3
    padded = _prepared(pad_to_square=True)
    assert (padded[20:] == 1).all()
    assert not (padded[:18] == 1).all(axis=-1).any()


def test_boxes_are_relative_to_the_padded_picture() -> None:
    plain = Preparation(size_px=30, resize_method=BILINEAR)
    square = Preparation(size_px=30, resize_method=BILINEAR, pad_to_square=True)
    assert plain.padded_wh(PICTURE) == (80, 50)
    assert square.padded_wh(PICTURE) == (80, 80)


def test_a_marked_box_is_a_red_line_one_pixel_wide_on_the_resized_picture() -> None:
    black = np.zeros((5, 9, 3), np.uint8)
    marked = outline_box(black, (0.25, 0.0, 1.0, 0.5))
    red = (marked == (255, 0, 0)).all(axis=-1)
    assert ["".join(".#"[int(cell)] for cell in row) for row in red] == [
        ".........",
        "#####....",
        "#...#....",
        "#...#....",
        "#####....",
    ]
    assert not black.any()
    prepared = _prepared(mark_box_yxyx=(0.0, 0.0, 1.0, 1.0))
    assert (prepared[0] == (1, -1, -1)).all()
    assert not (prepared[1, 1:-1] == (1, -1, -1)).all()
