"""Finds and reads official dataset files within bounds; errors name file and row.

Large files are streamed; what must be read whole has a bound.
"""

from __future__ import annotations

import bz2
import gzip
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from paligemma import json_file
from paligemma.errors import DataError
from paligemma.tasks.reading.finding import plain_name

# COCO's training annotations, the largest file that is read whole, have 0.45 GB.
MAX_JSON_BYTES = 2 << 30
# View hierarchies of phone applications have up to a hundred levels, two of JSON each.
MAX_JSON_DEPTH = 500
# Lines of the largest streamed file, tables with all their cells, stay below 1 MB.
MAX_LINE_BYTES = 16 << 20
# Text after decompression; bounds what a small hostile archive can unfold to.
MAX_TEXT_BYTES = 64 << 30


def find_file(data: Path, *candidates: str, source: str) -> Path:
    """Find the first of several places below the data folder that exists.

    Args:
        data: the data folder.
        candidates: relative paths, the official one first.
        source: place where the user can get it, for errors.

    Raises:
        DataError: none exists.
    """
    for candidate in candidates:
        path = Path(data) / candidate
        if os.path.exists(path):  # also of a name longer than files have
            return path
    there = f"the data folder {data}" if Path(data).exists() else f"there is no {data}; it"
    raise DataError(
        f"{there} must hold {' or '.join(candidates)}, which comes from {source}; "
        "download it there or pass another data folder"
    )


def relative_name(text: str, where: str) -> PurePosixPath:
    """Check a path that a file names: it must stay below the folder that it starts from.

    Raises:
        DataError: the path is absolute, leaves the folder, or is empty.
    """
    name = plain_name(text)
    if name is None:
        raise DataError(
            f"{where} must name a file below the data folder, got {text[:80]!r}; write the path "
            "from that folder"
        )
    return name


def read_json(path: Path) -> Any:
    """Read the whole content of a JSON file, .gz and .bz2 too.

    Raises:
        DataError: unreadable, larger than 2 GiB, or not JSON.
    """
    try:
        with open_file(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except (OSError, EOFError, ValueError) as error:  # a name may hold what no path can
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_JSON_BYTES:
        raise DataError(f"a JSON file may have {MAX_JSON_BYTES} bytes, {path} has more")
    return parse_json(data, f"{path}")


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON text.

    Raises:
        DataError: not JSON.
    """
    try:
        # Rows refuse a number that is not finite, and name their place.
        return json_file.parse_json(data, finite=False, max_depth=MAX_JSON_DEPTH)
    except ValueError as error:
        raise DataError(
            f"{where} must be JSON: {str(error)[:200]}; take the whole file again"
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines that are not blank, stripped, with their numbers from 1; .gz and .bz2 too.

    Raises:
        DataError: unreadable, or beyond the bounds of a line or a file.
    """
    number = total = 0
    try:
        with open_file(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(line)
                if len(line) > MAX_LINE_BYTES or total > MAX_TEXT_BYTES:
                    raise DataError(
                        f"a line may have {MAX_LINE_BYTES} bytes and a file {MAX_TEXT_BYTES}, "
                        f"{path}, row {number} goes beyond; check that it is the official file"
                    )
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line := line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read after row {number}: {error}") from error


def read_text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read lines as `read_lines` does, as UTF-8 text; raise DataError for other bytes."""
    for number, line in read_lines(path):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, row {number} must be text: {error}") from error


def read_text(path: Path, *, max_bytes: int, source: str) -> str:
    """Read the whole of a small UTF-8 file, with or without a byte-order mark.

    Args:
        path: path of the file.
        max_bytes: size beyond which the file is refused.
        source: place where the user can get it, for errors.

    Raises:
        DataError: unreadable, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise DataError(f"{path} may have {max_bytes} bytes, it has more")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({error}); it comes from {source}"
        ) from error


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, unpacked where its name ends in .gz or .bz2."""
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".bz2":
        return cast("IO[bytes]", bz2.open(path, "rb"))
    return path.open("rb")
