"""Official dataset files: found below a data folder, bounded, and wrong rows named.

Every error says which file, row and field broke the published layout. Large files are streamed;
what must be read whole has a bound.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np

from paligemma.errors import DataError

# COCO's training annotations, the largest file that is read whole, have 0.45 GB.
MAX_JSON_BYTES = 2 << 30
# Lines of the largest streamed file, tables with all their cells, stay below 1 MB.
MAX_LINE_BYTES = 16 << 20
# Text after decompression; bounds what a small hostile archive can unfold to.
MAX_TEXT_BYTES = 64 << 30

T = TypeVar("T")
# What a field must be, as people say it.
_KIND_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def find_file(data: Path, *candidates: str, source: str) -> Path:
    """The first of several places below the data folder where a file or folder exists.

    Args:
        data: the data folder.
        candidates: relative paths, the official one first.
        source: where it can be had, in words.

    Raises:
        DataError: none exists.
    """
    for candidate in candidates:
        path = Path(data) / candidate
        if path.exists():
            return path
    raise DataError(
        f"the data folder {data} must hold {' or '.join(candidates)}, which comes from {source}; "
        "download it there or pass another data folder"
    )


def read_json(path: Path) -> Any:
    """The whole content of a JSON file, .gz and .bz2 too.

    Raises:
        DataError: unreadable, larger than 2 GiB, or not JSON.
    """
    try:
        with _open(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_JSON_BYTES:
        raise DataError(f"a JSON file may have {MAX_JSON_BYTES} bytes, {path} has more")
    return _parse(data, f"{path}")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file of JSON lines with their line numbers from 1; .gz and .bz2 too.

    Blank lines are skipped.

    Raises:
        DataError: unreadable, a line longer than 16 MiB, or a line that is not a JSON object.
    """
    for number, line in read_lines(path):
        row = _parse(line, f"{path}, row {number}")
        yield number, require_object(row, f"{path}, row {number}")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, stripped, with their numbers from 1.

    Raises:
        DataError: unreadable, or beyond the bounds of a line or a file.
    """
    number = total = 0
    try:
        with _open(path) as file:
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


def read_csv(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with a heading, with the numbers of the lines they end on.

    Args:
        path: UTF-8, with or without a byte-order mark.
        columns: that must be there; others are returned too.
        delimiter: between fields.

    Raises:
        DataError: unreadable, a column is missing, or a row has more or fewer fields.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            header = reader.fieldnames or []
            if missing := [column for column in columns if column not in header]:
                raise DataError(
                    f"{path} must have the columns {', '.join(columns)}; {', '.join(missing)} "
                    f"missing among {', '.join(header)[:200]!r}"
                )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, row {reader.line_num} must have {len(header)} fields as its "
                        "heading has; check that the file is complete"
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def value(row: Any, name: str, kind: type[T], where: str) -> T:
    """One field of a row, of the wanted type.

    A number may be written as text, as tables and some identifiers have it; `float` takes whole
    numbers; NaN and infinity are refused.

    Args:
        row: an object of a file.
        name: of the field.
        kind: str, int, float, bool, list or dict.
        where: file and row, for the message.

    Raises:
        DataError: the field is missing or of another type.
    """
    if not isinstance(row, dict) or name not in row:
        has = f"has {', '.join(map(str, row))[:200]!r}" if isinstance(row, dict) else "is none"
        raise DataError(f"{where} must be an object with the field {name!r}, it {has}")
    found: Any = row[name]
    if kind in (int, float) and isinstance(found, str):
        found = _number(found, kind)
    if kind is float and type(found) is int:
        found = float(found)
    is_right = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
    if not is_right or (isinstance(found, float) and not math.isfinite(found)):
        raise DataError(
            f"{where}: the field {name!r} must be {_KIND_WORDS.get(kind, kind.__name__)}, "
            f"got {repr(row[name])[:80]}"
        )
    return cast(T, found)


def identifier(row: Any, name: str, where: str) -> str:
    """A field that is a whole number or text, as text.

    Raises:
        DataError: missing, or neither.
    """
    if isinstance(row, dict) and type(row.get(name)) is int:
        return str(row[name])
    return value(row, name, str, where)


def values(row: Any, name: str, kind: type[T], where: str) -> list[T]:
    """A field that is a list whose elements are all of one type.

    Raises:
        DataError: missing, no list, or an element of another type.
    """
    found = value(row, name, list, where)
    return [value({name: one}, name, kind, where) for one in found]


def require_object(row: Any, where: str) -> dict[str, Any]:
    """The row itself; raises DataError unless it is a JSON object."""
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object, got {repr(row)[:80]}")
    return row


@dataclass(frozen=True, kw_only=True)
class FilePicture:
    """A picture in a file, its pixels as they are stored: the original applies no EXIF turn.

    Attributes:
        path: of the file.
        quarter_turns: counter-clockwise, that make the stored pixels upright.
        size_hw: that its annotation states; where only the EXIF turn gives this size, it is
            applied.
    """

    path: Path
    quarter_turns: int = 0
    size_hw: tuple[int, int] | None = None

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8[H, W, 3]; of another size than `size_hw` where neither way gives it.

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


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".bz2":
        return cast("IO[bytes]", bz2.open(path, "rb"))
    return path.open("rb")


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} must be JSON: {str(error)[:200]}; take the official file, whole"
        ) from error


def _number(text: str, kind: type[Any]) -> Any:
    """The number a text holds, or the text: Python's own 1_000 is no number in a data file."""
    try:
        return text if "_" in text else kind(text)
    except ValueError:
        return text
