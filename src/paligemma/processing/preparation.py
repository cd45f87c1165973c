"""From a decoded picture to what the model reads; training and measuring share these steps.

    pad to a square -> resize -> mark a box -> [-1, 1]

Axes: H and W the picture's sides, R the side of the model's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paligemma.processing.resize import (
    BICUBIC,
    BILINEAR_ANTIALIAS,
    require_resize_method,
    resize,
    resize_float,
    to_unit_range,
)

WHITE = 255
_RED = (255, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a picture becomes the model's input.

    Attributes:
        size_px: side of the model's input, R.
        resize_method: one of `resize.RESIZE_METHODS`.
        keep_fractions: keep the fractions of grey levels that a bilinear resize computes, as the
            original does with video frames; otherwise they are truncated.
        pad_to_square: pad with white on the right or below before resizing.
        mark_box_yxyx: normalised box that is outlined in red, one pixel wide, after resizing; None
            marks nothing.

    Raises:
        ConfigError: an unknown resize method.
    """

    size_px: int
    resize_method: str
    keep_fractions: bool = False
    pad_to_square: bool = False
    mark_box_yxyx: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        require_resize_method(self.resize_method)

    def padded_wh(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        """Width and height, in pixels, that the boxes of an answer are relative to."""
        height, width = image.shape[:2]
        side = max(height, width)
        return (side, side) if self.pad_to_square else (width, height)

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Prepare one picture: uint8[H, W, 3] -> float32[R, R, 3] in [-1, 1]."""
        padded = pad_to_square(image) if self.pad_to_square else image
        resized: NDArray[np.generic]
        if self.keep_fractions and self.resize_method != BICUBIC:
            antialias = self.resize_method == BILINEAR_ANTIALIAS
            resized = resize_float(padded, self.size_px, antialias=antialias)
        else:
            resized = resize(padded, self.size_px, self.resize_method)
        if self.mark_box_yxyx is not None:
            resized = outline_box(resized, self.mark_box_yxyx)
        return to_unit_range(resized)


def pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White on the right or below: uint8[H, W, 3] -> uint8[S, S, 3], S the longer side."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    padded = np.full((side, side, 3), WHITE, np.uint8)
    padded[:height, :width] = image
    return padded


def outline_box(
    image: NDArray[np.generic], box_yxyx: tuple[float, float, float, float]
) -> NDArray[np.generic]:
    """A copy with a red rectangle, one pixel wide.

    Args:
        image: uint8 or float32[H, W, 3] in 0..255.
        box_yxyx: normalised box; its corners fall on pixel int(coordinate * (size - 1)).

    Source: big_vision configs/proj/paligemma/transfers/widgetcap.py, tf.image.draw_bounding_boxes.
    """
    height, width = image.shape[:2]
    y0, x0, y1, x1 = (
        int(min(max(coordinate, 0.0), 1.0) * (size - 1))
        for coordinate, size in zip(box_yxyx, (height, width, height, width), strict=True)
    )
    marked = image.copy()
    marked[[y0, y1], x0 : x1 + 1] = _RED
    marked[y0 : y1 + 1, [x0, x1]] = _RED
    return marked
