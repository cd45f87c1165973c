"""The pictures of an example as the model reads them, the way its benchmark prepares them.

    read -> pad to a square -> resize -> mark a box -> [-1, 1]

Axes: F pictures, R input side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paligemma.errors import ImageError
from paligemma.example import Asking, Example
from paligemma.outputs.boxes import Box
from paligemma.processing.resize import (
    BICUBIC,
    BILINEAR_ANTIALIAS,
    resize,
    resize_float,
    to_unit_range,
)
from paligemma.tasks.reading.files import FilePicture

WHITE = 255
_RED = (255, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPictures:
    """The picture or pictures of one example.

    Attributes:
        pixels: float32[R, R, 3], or [F, R, R, 3] for several, in [-1, 1].
        image_wh: width and height of the (first) picture.
        padded_wh: the same with what was padded, which is what boxes are relative to.
        note: in words, where a picture has another size than its annotation states.
    """

    pixels: np.ndarray
    image_wh: tuple[int, int]
    padded_wh: tuple[int, int]
    note: str | None = None


def read_pictures(
    example: Example, asking: Asking, *, size_px: int, max_pixels: int
) -> ReadPictures:
    """Read and prepare them.

    Args:
        example: whose pictures.
        asking: of its benchmark.
        size_px: side of the model's input, R.
        max_pixels: largest picture that is decoded.

    Raises:
        ImageError: no picture, or one that is unreadable or too large.
    """
    if not example.pictures:
        raise ImageError(f"an example needs a picture, {example.id} has none")
    frames: list[np.ndarray] = []
    image_wh = padded_wh = (0, 0)
    note = None
    for picture in example.pictures:
        image = picture.read(max_pixels)
        if isinstance(picture, FilePicture) and picture.size_hw not in (None, image.shape[:2]):
            (rows, columns), found = picture.size_hw, image.shape
            note = f"it is {found[1]}x{found[0]} pixels, its annotation says {columns}x{rows}"
        padded = pad_to_square(image) if asking.pad_to_square else image
        if not frames:
            image_wh = image.shape[1], image.shape[0]
            padded_wh = padded.shape[1], padded.shape[0]
        frames.append(_prepared(padded, asking, size_px, example.mark_box_yxyx))
    pixels = frames[0] if len(frames) == 1 else np.stack(frames)
    return ReadPictures(pixels=pixels, image_wh=image_wh, padded_wh=padded_wh, note=note)


def _prepared(image: np.ndarray, asking: Asking, size_px: int, mark: Box | None) -> np.ndarray:
    """float32[R, R, 3] in [-1, 1]."""
    method = asking.resize_method
    if asking.keep_fractions and method != BICUBIC:
        resized: np.ndarray = resize_float(image, size_px, antialias=method == BILINEAR_ANTIALIAS)
    else:
        resized = resize(image, size_px, method)
    if mark is not None:
        resized = draw_box(resized, mark)
    return to_unit_range(resized)


def pad_to_square(image: np.ndarray) -> np.ndarray:
    """White on the right or below: uint8[H, W, 3] -> uint8[S, S, 3], S the longer side."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    padded = np.full((side, side, 3), WHITE, np.uint8)
    padded[:height, :width] = image
    return padded


def draw_box(image: np.ndarray, box_yxyx: Box) -> np.ndarray:
    """A copy with a red rectangle, one pixel wide.

    Args:
        image: uint8 or float32[H, W, 3] in 0..255.
        box_yxyx: normalised; corners fall on pixel int(coordinate * (size - 1)).

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
