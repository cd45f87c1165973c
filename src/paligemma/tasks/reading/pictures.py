"""Sizes of pictures without decoding them, and pictures that are a part of a larger one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paligemma.errors import DataError, ImageError


def picture_size_hw(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is stored, from its heading alone.

    Raises:
        DataError: no picture there.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except Exception as error:  # damaged headings raise whatever a plugin stumbles over
        raise DataError(f"{path} must be a picture: {str(error)[:200]}") from error
    return height, width


def first_file(folder: Path, names: Iterable[str]) -> Path:
    """The first of several spellings of a file that exists, or else the first of them."""
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


@dataclass(frozen=True, kw_only=True)
class CroppedPicture:
    """A rectangle of a picture in a file.

    Attributes:
        path: of the file.
        box_xyxy_px: edges in whole pixels of the picture.
    """

    path: Path
    box_xyxy_px: tuple[int, int, int, int]

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8[H, W, 3], as it is stored.

        Raises:
            ImageError: unreadable, larger than the bound, or the rectangle leaves the picture.
        """
        from paligemma.processing.image import load_image

        image = load_image(self.path, max_pixels=max_pixels, upright=False)
        x0, y0, x1, y1 = self.box_xyxy_px
        if not (0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]):
            raise ImageError(
                f"{self.box_xyxy_px} must lie on {self.path}, which has {image.shape[1]}x"
                f"{image.shape[0]} pixels; render it at the stated resolution"
            )
        return np.ascontiguousarray(image[y0:y1, x0:x1])
