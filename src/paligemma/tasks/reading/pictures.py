"""Pictures in files, parts of them, and their sizes without decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from paligemma.errors import DataError, ImageError


@dataclass(frozen=True, kw_only=True)
class FilePicture:
    """A picture in a file, with its pixels as stored: the original applies no EXIF turn.

    Attributes:
        path: path of the file.
        quarter_turns: counter-clockwise turns that make the stored pixels upright.
        size_hw: height and width that its annotation states; where only the EXIF turn gives this
            size, it is applied.
    """

    path: Path
    quarter_turns: int = 0
    size_hw: tuple[int, int] | None = None

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3], of another size than `size_hw` where neither way gives it.

        Raises:
            ImageError: unreadable, or larger than the bound.
        """
        from paligemma.processing.image import load_image

        image = load_image(self.path, max_pixels=max_pixels, upright=False)
        if self.size_hw not in (None, image.shape[:2]):
            turned = load_image(self.path, max_pixels=max_pixels)
            if turned.shape[:2] == self.size_hw:
                image = turned
        return np.ascontiguousarray(np.rot90(image, self.quarter_turns))


@dataclass(frozen=True, kw_only=True)
class CroppedPicture:
    """A rectangle of a picture in a file.

    Attributes:
        path: path of the file.
        box_xyxy_px: edges in whole pixels of the picture.
    """

    path: Path
    box_xyxy_px: tuple[int, int, int, int]

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3], as stored.

        Raises:
            ImageError: unreadable, larger than the bound, or the rectangle leaves the picture.
        """
        image = FilePicture(path=self.path).read(max_pixels)
        x0, y0, x1, y1 = self.box_xyxy_px
        if not (0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]):
            raise ImageError(
                f"{self.box_xyxy_px} must lie on {self.path}, which has {image.shape[1]}x"
                f"{image.shape[0]} pixels; render it at the stated resolution"
            )
        return np.ascontiguousarray(image[y0:y1, x0:x1])


def picture_size_hw(path: Path) -> tuple[int, int]:
    """Read height and width of a picture as stored, from its heading alone.

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
    """Return the first of several spellings of a file that exists, or else the first spelling."""
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def folder_of(name: PurePath, folders: Sequence[Path], where: str) -> Path:
    """Find the first of several folders that holds a picture.

    Args:
        name: path of the picture below its folder.
        folders: folders in which to look.
        where: place that names the picture, for errors.

    Raises:
        DataError: none holds it.
    """
    folder = next((one for one in folders if (one / name).is_file()), None)
    if folder is None:
        places = ", ".join(map(str, folders))
        raise DataError(f"{where}: {name} must lie in one of {places}; unpack the pictures there")
    return folder
