"""Files and folders that appear whole or not at all: written beside their place, then renamed.

What a kill interrupts leaves a hidden file or folder beside the target, never a damaged target.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paligemma.errors import ConfigError

# Numbers of the system's errors for a full disk.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Characters of up to four bytes; file systems allow 255 bytes.
_MAX_RECALLED = 50
# A hidden name, of which the recalled one and the suffix are groups.
_UNFINISHED = re.compile(r"\.(.*)\.[0-9a-f]{32}(\.[^.]*)?", re.DOTALL)


def _hidden(name: str) -> str:
    """A new hidden name that recalls another and is no longer than file systems allow."""
    return f".{name[:_MAX_RECALLED]}.{uuid.uuid4().hex}"


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the name of `path` when the block succeeds.

    The path keeps the suffix of `path`, by which writers choose their format. After an error the
    unfinished file is removed.

    Args:
        sync: whether the content must reach the disk before the file is renamed, so that it
            survives a power cut.
    """
    partial = path.with_name(_hidden(path.stem) + path.suffix)
    try:
        yield partial
        if sync:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_unfinished(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the hidden files and folders that killed writers left in a folder.

    For whoever is the one writer of these files: those of a writer under way look alike.

    Args:
        names: of the files that were to be written, of less than 50 characters before the suffix.
    """
    with os.scandir(folder) as entries:
        hidden = [entry for entry in entries if entry.name.startswith(".")]
    for entry in hidden:
        found = _UNFINISHED.fullmatch(entry.name)
        if found is None or len(found[1]) >= _MAX_RECALLED:  # or it may be of a longer name
            continue
        if names.fullmatch(found[1] + (found[2] or "")):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, made with its parents, to be filled and renamed.

    What is still there at the end of the block is removed.
    """
    staging = target.with_name(_hidden(target.name))
    try:
        staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write a text file whole or not at all; it survives a power cut once this returns.

    Args:
        parts: pieces of the text, written one after the other as UTF-8.

    Raises:
        ConfigError: the folder of the file is missing or cannot be written.
    """
    try:
        with whole_file(path, sync=True) as partial, open(partial, "w", encoding="utf-8") as file:
            file.writelines(parts)
    except OSError as error:
        is_full = error.errno in NO_ROOM
        raise ConfigError(
            f"a file needs a folder that is there and can be written, got {path} "
            f"({error.strerror or error}); make {'room' if is_full else 'that folder'} or name "
            "another"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `write_whole` does.

    Raises:
        ConfigError: see `write_whole`.
        ValueError: a number is infinite or NaN, which JSON cannot hold.
    """
    write_whole(path, [json.dumps(value, indent=1, allow_nan=False) + "\n"])


# What a picture, a page or a drawing that was written here begins with: a chunk of PNG, an element
# of HTML or of SVG.
SOFTWARE = "paligemma"
PAGE_MARK = f'<meta name="generator" content="{SOFTWARE}">'
DRAWING_MARK = f"<metadata>{SOFTWARE}</metadata>"
_MARKS = (
    f"tEXtSoftware\0{SOFTWARE}".encode("latin-1"),
    PAGE_MARK.encode(),
    DRAWING_MARK.encode(),
)


def require_free(path: Path, *, overwrite: bool = False) -> None:
    """Check that writing to `path` replaces nothing of the user's, before the work for it.

    A picture or a page that was written here before may be replaced, and is known by its mark. Any
    other file, and a link whatever it leads to, only where the user asked for that.

    Args:
        path: file to be written.
        overwrite: the user's leave to replace what is there.

    Raises:
        ConfigError: something else is there, or the name cannot be looked up.
    """
    shown = str(path)
    try:
        os.lstat(path)
        is_folder = path.is_dir() and not path.is_symlink()  # which no file ever replaces
        if is_folder or overwrite or (not path.is_symlink() and _is_marked(path)):
            return
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"a result needs a place that can be written, got {shown[:200]!r} "
            f"({getattr(error, 'strerror', None) or error}); name another"
        ) from error
    raise ConfigError(
        f"a file that is there is kept, and {shown!r} was not written by this program; "
        "name another, or allow it with --overwrite"
    )


def _is_marked(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(4096)
    return any(mark in start for mark in _MARKS)


def cache_folder() -> Path:
    """Where this program keeps what it can do without, of this user."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "paligemma"


def require_writable(folder: Path) -> None:
    """Make a folder and check that it takes files, before the work whose result goes there.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"a result needs a folder that can be written, got {folder} "
            f"({error.strerror or error}); name another place"
        ) from error
