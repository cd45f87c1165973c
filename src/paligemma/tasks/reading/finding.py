"""Finds pictures by the names that data files give them, and nothing outside their folder.

A name counts as found if only case, suffix or Unicode form differ, also in a folder further
inside, as an archive that was unpacked once more leaves it.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from paligemma.errors import ImageError

PICTURE_SUFFIXES = frozenset(
    {"", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)
# Files that the index of one folder may hold: MIMIC-CXR, the largest set, has 377,110 pictures.
MAX_FILES = 500_000
_NUM_NAMED = 2
_building = threading.Lock()


def plain_name(text: str) -> PurePosixPath | None:
    """The path that a data file names, written with either separator; None if it is no path below
    the folder from which it starts.
    """
    name = PureWindowsPath(text)
    if name.drive or name.root or ".." in name.parts or not name.name or "\0" in text:
        return None
    return PurePosixPath(*name.parts)


def find_picture(path: Path, folder: Path) -> Path:
    """Find the file of a picture.

    Args:
        path: where its data file places it.
        folder: folder from which that name starts, which is never left.

    Raises:
        ImageError: the name or a link leaves the folder, no file has the name, or several have.
    """
    try:
        name = plain_name(str(path.relative_to(folder)))
    except ValueError:
        name = None
    if name is None:
        raise ImageError(
            f"a picture must lie below {folder}, got {_short(path)}; name it from that folder"
        )
    found = folder / name
    if not os.path.isfile(found):
        matches = matching(folder, name)
        if len(matches) > 1:
            some = " and ".join(str(one) for one in matches[:_NUM_NAMED])
            raise ImageError(
                f"a picture must be the only one of its name, but for {_short(name)} there are "
                f"{some} in {folder}; keep one"
            )
        if not matches and not os.access(folder, os.R_OK | os.X_OK) and folder.exists():
            raise ImageError(f"the folder {folder} may not be read; change its permissions")
        if not matches:
            raise ImageError(
                f"no picture {_short(name)} lies in {folder} or a folder inside, whatever its "
                "case, suffix or Unicode form; unpack the pictures there"
            )
        found = folder / matches[0]
        if not os.path.isfile(found):
            raise ImageError(
                f"a picture must be a file, {_short(found)} is none that can be read twice; copy it"
            )
    _require_inside(found, folder)
    return found


def matching(folder: Path, name: PurePosixPath) -> list[str]:
    """Paths below a folder that end in a name, up to case, suffix and Unicode form."""
    wanted = _keys(name)
    with _building:  # one thread walks, the others wait for its index
        found = _index(folder).get(wanted[-1], [])
    return [one for one in found if _keys(PurePosixPath(one))[-len(wanted) :] == wanted]


def look_again() -> None:
    """Forget what folders held: their user may have mended them."""
    with _building:
        _index.cache_clear()


@cache
def _index(folder: Path) -> dict[str, list[str]]:
    """Key of a name -> paths below the folder, of everything that may be a picture.

    Raises:
        ImageError: more than `MAX_FILES` of them.
    """
    found: dict[str, list[str]] = {}
    num_files = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith((".", "__MACOSX")))
        below = PurePosixPath(Path(place).relative_to(folder))
        for name in sorted(files):
            if name.startswith(".") or Path(name).suffix.lower() not in PICTURE_SUFFIXES:
                continue
            num_files += 1
            if num_files > MAX_FILES:
                raise ImageError(
                    f"{folder} holds more than {MAX_FILES} pictures, so each must have exactly the "
                    "name in its data file, and one has not; rename it"
                )
            found.setdefault(_key(name), []).append(str(below / name))
    return found


def _keys(path: PurePosixPath) -> list[str]:
    *folders, name = path.parts
    return [*(_folded(one) for one in folders), _key(name)]


def _key(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return _folded(stem if suffix.lower() in PICTURE_SUFFIXES else name)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _require_inside(path: Path, folder: Path) -> None:
    """Refuse a link that leads out; the folder itself may be one, and a hub's cache consists of
    links from `snapshots` to `blobs`.
    """
    homes = [folder.resolve()]
    homes += [one.parent / "blobs" for one in homes[0].parents if one.name == "snapshots"]
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise ImageError(
            f"a picture must lie below {folder}, but {path} is a link that leads out of it; copy "
            "the picture, or link the whole folder"
        )


def _short(path: object) -> str:
    text = str(path)
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
