"""The pictures of a folder, of a pattern of file names, or of anything that gives one by one."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from paligemma.errors import ImageError

logger = logging.getLogger(__name__)

# How files of pictures are known in a folder; a file that is named is read whatever its suffix.
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"),
        *(".heic", ".heif", ".hif", ".ico", ".tga", ".pcx", ".mpo"),
    }
)
# Of videos, which a folder's pictures are not: one is asked by its first frame, or by a choice.
_VIDEOS = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"),
        *(".ogv", ".3gp"),
    }
)
_SHOWN = 200
_ANY_DEPTH = "**"


def is_picture_name(name: str) -> bool:
    """Whether a file of this name counts as a picture."""
    return _suffix(name) in SUFFIXES


def files_of(place: str, also: frozenset[str] = frozenset()) -> list[str] | None:
    """The files of pictures in a folder, its folders included, or of a pattern; in order.

    Hidden files and folders are left out, and so are pipes and devices. Each folder is read once,
    whatever links lead to it. A warning counts the videos of a folder, which are left out; a
    pattern that ends in their suffix names them. None where the place is neither, such as a file.

    Args:
        also: suffixes of other files that are taken too, such as ".pdf".

    Raises:
        ImageError: the folder or the pattern holds no picture, or the folder cannot be read.
    """
    if os.path.isdir(place):
        kind, videos, found = "folder", [], []
        for folder, names in _folders_of(place):
            videos += [os.path.join(folder, name) for name in names if _suffix(name) in _VIDEOS]
            taken = [name for name in names if _suffix(name) in SUFFIXES | also]
            paths = [os.path.join(folder, name) for name in taken]
            found += [path for path in paths if _is_taken(path)]
        if videos:
            logger.warning(
                "%s: a folder is asked for its pictures, and its videos are left out: %d, such as "
                "%s; name them, or take them by a pattern that ends in their suffix",
                place[:_SHOWN],
                len(videos),
                videos[0][:_SHOWN],
            )
    elif glob.has_magic(place) and not os.path.lexists(place) and "://" not in place:
        kind = "pattern"
        wanted = SUFFIXES | also | ({_suffix(place)} & _VIDEOS)
        found = [one for one in _matching(place) if _suffix(one) in wanted and _is_taken(one)]
    else:
        return None
    if not found:
        raise ImageError(
            f"a {kind} of {'documents' if also else 'pictures'} holds files such as "
            f"{', '.join([*sorted(also), '.jpg'])} or .png, {place[:_SHOWN]!r} has none; check the "
            "path"
        )
    return found


def _is_taken(path: str) -> bool:
    """A link to nothing stays, to be named; a pipe would be waited for without an end."""
    return os.path.isfile(path) or not os.path.exists(path)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _folders_of(top: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder below one, itself included, once, with its files; none of them hidden.

    Folders that links lead to come after those that lie there.

    Raises:
        ImageError: the top folder cannot be read; a warning names any other.
    """

    def unreadable(error: OSError) -> None:
        sentence = f"the folder {str(error.filename)[:_SHOWN]!r} cannot be read: {error.strerror}"
        if error.filename == top:
            raise ImageError(f"{sentence}; see to its rights") from error
        logger.warning("%s; its pictures are left out", sentence)

    seen: set[tuple[int, int]] = set()
    waiting = [top]
    for start in waiting:  # grows while it is gone through
        for folder, folders, names in os.walk(start, onerror=unreadable):
            found = os.stat(folder)
            if (found.st_dev, found.st_ino) in seen:
                folders.clear()
                continue
            seen.add((found.st_dev, found.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [os.path.join(folder, name) for name in folders]
            waiting += [path for path in paths if os.path.islink(path)]
            yield folder, sorted(name for name in names if not name.startswith("."))


def _matching(pattern: str) -> list[str]:
    """The files of a pattern; "**" stands for any folders, each of which is read once."""
    parts = Path(pattern).parts
    if _ANY_DEPTH not in parts:
        return sorted(glob.glob(pattern))
    start = parts.index(_ANY_DEPTH)
    head = os.path.join(*parts[:start]) if start else ""
    found: list[str] = []
    for top in sorted(glob.glob(head)) if head else [os.curdir]:
        for folder, names in _folders_of(top) if os.path.isdir(top) else ():
            below = () if folder == top else Path(os.path.relpath(folder, top)).parts
            for name in names:
                if _fits((*below, name), parts[start:]):
                    found.append(os.path.join(head and folder, *(() if head else below), name))
    return sorted(found)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == _ANY_DEPTH:
        return any(_fits(parts[count:], pattern[1:]) for count in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


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
