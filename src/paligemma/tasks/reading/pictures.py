"""Pictures in files, parts of them, and their sizes without decoding."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.tasks.reading.files import relative_name
from paligemma.tasks.reading.finding import find_picture, matching, plain_name

logger = logging.getLogger(__name__)
# Of a path of another place, the names at its end that may be folders of the data.
_MAX_PARTS = 16


@dataclass(frozen=True, kw_only=True)
class FilePicture:
    """A picture in a file, with its pixels as stored: the original applies no EXIF turn.

    Attributes:
        path: path of the file, as its data file gives it; see `find_picture`.
        folder: folder from which the data file names it, which it may not leave; that of `path` by
            default.
        quarter_turns: counter-clockwise turns that make the stored pixels upright.
        size_hw: height and width that its annotation states; where only the EXIF turn gives this
            size, it is applied.
    """

    path: Path
    folder: Path | None = field(default=None, repr=False, compare=False)
    quarter_turns: int = 0
    size_hw: tuple[int, int] | None = None

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3], of another size than `size_hw` where neither way gives it.

        Raises:
            ImageError: not found, unreadable, or larger than the bound.
        """
        from paligemma.processing.image import load_as_original

        path = self.find()
        image = load_as_original(path, max_pixels=max_pixels)
        if self.size_hw not in (None, image.shape[:2]):
            turned = load_as_original(path, max_pixels=max_pixels, upright=True)
            if turned.shape[:2] == self.size_hw:
                image = turned
        return np.ascontiguousarray(np.rot90(image, self.quarter_turns))

    def find(self) -> Path:
        """Find the file; raise ImageError as `find_picture` does."""
        return find_picture(self.path, self.folder or self.path.parent)

    def stored_size_hw(self) -> tuple[int, int]:
        """Read height and width as stored, from the heading alone.

        Raises:
            DataError: no picture there.
        """
        try:
            return picture_size_hw(self.find())
        except ImageError as error:
            raise DataError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class CroppedPicture:
    """A rectangle of a picture in a file.

    Attributes:
        path: path of the file.
        folder: see `FilePicture`.
        box_xyxy_px: edges in whole pixels of the picture.
    """

    path: Path
    folder: Path | None = field(default=None, repr=False, compare=False)
    box_xyxy_px: tuple[int, int, int, int]

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3], as stored.

        Raises:
            ImageError: unreadable, larger than the bound, or the rectangle leaves the picture.
        """
        image = FilePicture(path=self.path, folder=self.folder).read(max_pixels)
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
    from paligemma.processing.image import picture_sizes_hw

    try:
        return picture_sizes_hw(path)[1]
    except ImageError as error:
        raise DataError(str(error)) from error


def picture_in(folder: Path, *names: str | PurePath, **more: Any) -> FilePicture:
    """Make the picture of the first of several names that a folder holds, or else of the first.

    Args:
        folder: folder that the names start from.
        names: spellings of one name.
        more: other attributes of `FilePicture`.
    """
    name = names[0]
    if len(names) > 1:
        name = next(_held([folder], names), (folder, name))[1]
    return FilePicture(path=folder / name, folder=folder, **more)


def folder_of(folders: Sequence[Path], *names: str | PurePath) -> Path | None:
    """Find the first of several folders that holds a picture, or else has it further inside.

    Args:
        folders: folders in which to look.
        names: spellings of the name of the picture below its folder.
    """
    return next((folder for folder, _ in _held(folders, names)), None)


def require_folder_of(folders: Sequence[Path], name: PurePath, where: str) -> Path:
    """Find a folder as `folder_of` does; raise DataError, with the place `where`, if none is."""
    folder = folder_of(folders, name)
    if folder is None:
        places = ", ".join(map(str, folders))
        raise DataError(f"{where}: {name} must lie in one of {places}; unpack the pictures there")
    return folder


class NamedPictures:
    """The folder of the pictures that a file names, and their names from there.

    A path of another place, as absolute ones are, is taken by as much of its end as the folder
    holds.

    Args:
        folders: folders in which they may lie.
        first: name of the first picture.
        where: place of the names, for errors.
        otherwise: folder to take where none holds the first picture; None raises DataError.

    Attributes:
        folder: the first of the folders that holds the first picture.
    """

    def __init__(
        self, folders: Sequence[Path], first: str, where: str, *, otherwise: Path | None = None
    ) -> None:
        name = held_end(folders, first)
        self._is_cut = name is not None and name != plain_name(first)
        if self._is_cut:
            logger.warning(
                "%s names files elsewhere, such as %s, which is taken to be %s",
                where,
                first[:200],
                name,
            )
        if otherwise is None:
            otherwise = require_folder_of(folders, name or relative_name(first, where), where)
        self.folder = (name and folder_of(folders, name)) or otherwise

    def name_of(self, text: str, where: str) -> PurePosixPath:
        """The name of a picture, from the folder.

        Raises:
            DataError: it is of another place, and the folder holds no end of it; names `where`.
        """
        name = held_end([self.folder], text) if self._is_cut or plain_name(text) is None else None
        return name or relative_name(text, where)


def held_end(folders: Sequence[Path], text: str) -> PurePosixPath | None:
    """The longest end of a path, the whole of it first, that one of several folders holds."""
    parts = PureWindowsPath(text).parts[-_MAX_PARTS:]
    ends = [plain_name(text), *(plain_name("/".join(parts[k:])) for k in range(len(parts)))]
    held = (one for one in ends if one is not None and folder_of(folders, one) is not None)
    return next(held, None)


def _held(
    folders: Sequence[Path], names: Sequence[str | PurePath]
) -> Iterator[tuple[Path, str | PurePath]]:
    """Folders and names with a file: those exactly there, then those further inside."""
    pairs = [(folder, name) for folder in folders for name in names]
    yield from (pair for pair in pairs if os.path.isfile(pair[0] / pair[1]))
    for folder, name in pairs:
        plain = plain_name(str(name))
        with suppress(ImageError):  # an index that became too large
            if plain is not None and matching(folder, plain):
                yield folder, name
