"""The pictures of an example, read and prepared for the model; nothing here needs one.

Axes: F pictures, R side of the model's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paligemma.errors import ImageError
from paligemma.example import Example
from paligemma.processing.preparation import Preparation
from paligemma.tasks.reading.pictures import FilePicture


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPictures:
    """The picture or pictures of one example, prepared.

    Attributes:
        pixels: float32[R, R, 3], or [F, R, R, 3] for several, in [-1, 1].
        image_wh: width and height of the (first) picture, in pixels.
        padded_wh: the same with the padding, which is what boxes are relative to.
        note: a sentence, where a picture has another size than its annotation states.
    """

    pixels: np.ndarray
    image_wh: tuple[int, int]
    padded_wh: tuple[int, int]
    note: str | None = None


def read_pictures(example: Example, preparation: Preparation, max_pixels: int) -> ReadPictures:
    """Read and prepare the pictures of an example.

    Args:
        example: question whose pictures are read.
        preparation: steps from a picture to the model's input.
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
        if not frames:
            image_wh, padded_wh = (image.shape[1], image.shape[0]), preparation.padded_wh(image)
        frames.append(preparation.prepare(image))
    pixels = frames[0] if len(frames) == 1 else np.stack(frames)
    return ReadPictures(pixels=pixels, image_wh=image_wh, padded_wh=padded_wh, note=note)
