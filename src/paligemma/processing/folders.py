"""The pictures of a folder, of a pattern of file names, or of anything that gives one by one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paligemma.errors import ImageError

# How files of pictures are known in a folder; a file that is named is read whatever its suffix.
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"),
        *(".pgm", ".pnm", ".jp2", ".avif", ".heic", ".heif", ".ico", ".tga", ".pcx", ".mpo"),
    }
)
_SHOWN = 200


def is_picture_name(name: str) -> bool:
    """Whether a file of this name counts as a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def files_of(place: str) -> list[str] | None:
    """The files of pictures in a folder, its folders included, or of a pattern; in order.

    Hidden files and folders are left out, and so are pipes and devices. None where the place is
    neither, such as a file.

    Raises:
        ImageError: the folder or the pattern holds no picture.
    """
    if os.path.isdir(place):
        found = []
        for folder, folders, names in os.walk(place):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            shown = sorted(name for name in names if not name.startswith("."))
            paths = [os.path.join(folder, name) for name in shown if is_picture_name(name)]
            # A link to nothing stays, to be named; a pipe would be waited for without an end.
            found += [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    elif glob.has_magic(place) and not os.path.lexists(place) and "://" not in place:
        paths = sorted(glob.glob(place, recursive=True))
        found = [path for path in paths if os.path.isfile(path) and is_picture_name(path)]
    else:
        return None
    if not found:
        kind = "folder" if os.path.isdir(place) else "pattern"
        raise ImageError(
            f"a {kind} of pictures holds files such as .jpg or .png, {place[:_SHOWN]!r} has none; "
            "check the path"
        )
    return found


def each_picture(source: Any) -> Iterable[Any]:
    """The pictures of a folder or pattern as paths, or what another source gives, one by one.

    Raises:
        ImageError: no pictures in a folder or pattern, or a source that is one picture.
    """
    if isinstance(source, str | Path):
        found = files_of(os.fspath(source))
        return [os.fspath(source)] if found is None else found
    if isinstance(source, bytes) or hasattr(source, "read") or not isinstance(source, Iterable):
        raise ImageError(
            f"many pictures are a folder, a pattern or a list, got {type(source).__name__}; "
            "ask about one picture with ask"
        )
    return source
