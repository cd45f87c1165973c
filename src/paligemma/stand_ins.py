"""What lies in the place of a file that was never really fetched."""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
_LOOKED_AT = 512


def stand_in(file: Path | bytes) -> str | None:
    """What a file, or bytes, are in place of the thing itself, and the remedy; None if neither.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(file, bytes):
        start = file[:_LOOKED_AT]
    else:
        with file.open("rb") as opened:
            start = opened.read(_LOOKED_AT)
    if not start:
        return "it is empty"
    if start.startswith(_LFS):
        return "it is a pointer of Git LFS; run git lfs pull in its folder"
    if start.lstrip().lower().startswith(_PAGES):
        return "it is a web page, as a link to a page or a login gives it"
    return None
