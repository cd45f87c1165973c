"""Rows of annotation files, each with the place where it stands, so that errors can name it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar, cast

from paligemma.errors import DataError
from paligemma.tasks.reading.files import open_file, parse_json, read_json, read_lines

_Value = TypeVar("_Value")
# Ids have up to 19 digits; what is larger would overflow as a float somewhere.
MAX_INTEGER = 2**64
_MAX_DIGITS = 19
# Names of the types in errors.
_KIND_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class FileRow:
    """One object of an annotation file.

    Attributes:
        fields: fields of the object.
        where: file and row, for errors.
        number: number of the row in its file or list; -1 where it has none.
    """

    fields: Mapping[str, Any]
    where: str
    number: int = -1

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def value(self, name: str, kind: type[_Value]) -> _Value:
        """Read one field, of the wanted type.

        A number may be written as text, as tables and some identifiers have it; `float` takes
        whole numbers and `int` 7.0; NaN and infinity are refused.

        Args:
            name: name of the field.
            kind: str, int, float, bool, list or dict.

        Raises:
            DataError: the field is missing or of another type.
        """
        return _checked(self.any(name), name, kind, self.where)

    def any(self, name: str) -> Any:
        """Read a field of whatever type; raise DataError where it is missing."""
        if name not in self.fields:
            raise DataError(
                f"{self.where} must be an object with the field {name!r}, it has "
                f"{', '.join(map(str, self.fields))[:200]!r}"
            )
        return self.fields[name]

    def text(self, name: str) -> str:
        """Read a field that is text."""
        return self.value(name, str)

    def integer(self, name: str) -> int:
        """Read a field that is a whole number."""
        return self.value(name, int)

    def identifier(self, name: str) -> str:
        """Read a field that is a whole number or text, as text."""
        is_text = isinstance(self.fields.get(name), str)
        return self.text(name) if is_text else str(self.integer(name))

    def values(self, name: str, kind: type[_Value]) -> list[_Value]:
        """Read a field that is a list whose elements are all of one type."""
        return [_checked(one, name, kind, self.where) for one in self.value(name, list)]

    def texts(self, name: str) -> list[str]:
        """Read a field that is a list of texts."""
        return self.values(name, str)

    def object(self, name: str) -> FileRow:
        """Read a field that is an object."""
        return FileRow(self.value(name, dict), self.where)

    def objects(self, name: str) -> list[FileRow]:
        """Read a field that is a list of objects."""
        return [FileRow(one, f"{self.where}, {name}") for one in self.values(name, dict)]

    def error(self, rule: str) -> DataError:
        """Build the error of a rule that this row breaks."""
        return DataError(f"{self.where}: {rule}")


def read_object(path: Path) -> FileRow:
    """Read the object that a JSON file holds.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    return FileRow(require_object(read_json(path), f"{path}"), f"{path}")


def read_list(path: Path, name: str | None = None) -> Iterator[FileRow]:
    """Read the objects of a list in a JSON file, numbered from 0.

    Args:
        path: path of the file.
        name: key of the list in the file; None where the file is the list.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    return list_rows(read_json(path), path, name)


def list_rows(table: Any, path: Path, name: str | None = None) -> Iterator[FileRow]:
    """Take the rows of a list from a JSON file that was read already; see `read_list`."""
    if name is not None:
        if not isinstance(table, dict) or name not in table:
            found = sorted(table)[:5] if isinstance(table, dict) else type(table).__name__
            raise DataError(f"{path} must hold an object with the list {name!r}, got {found}")
        table = table[name]
    if not isinstance(table, list):
        raise DataError(f"{path} must hold a list of rows, got {type(table).__name__}")
    place = f"{path}" if name is None else f"{path}, {name}"
    for number, row in enumerate(table):
        where = f"{place}, row {number}"
        yield FileRow(require_object(row, where), where, number)


def read_keyed(path: Path) -> Iterator[tuple[str, FileRow]]:
    """Read the objects of an object in a JSON file, with their keys.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    return keyed_rows(read_json(path), path)


def keyed_rows(table: Any, path: Path) -> Iterator[tuple[str, FileRow]]:
    """Take the rows of an object that was read already; see `read_keyed`."""
    if not isinstance(table, dict):
        raise DataError(f"{path} must hold one object a key, got {type(table).__name__}")
    for key, row in table.items():
        where = f"{path}, {key}"
        yield key, FileRow(require_object(row, where), where)


def read_json_lines(path: Path) -> Iterator[FileRow]:
    """Read the objects of a file of JSON lines, numbered from 1; .gz and .bz2 too.

    Blank lines are skipped.

    Raises:
        DataError: the file cannot be read, a line is longer than 16 MiB, or is no JSON object.
    """
    for number, line in read_lines(path):
        where = f"{path}, row {number}"
        yield FileRow(require_object(parse_json(line, where), where), where, number)


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[FileRow]:
    """Read a table with a heading; a row is numbered by its last line, and all fields are text.

    Args:
        path: UTF-8 file, with or without a byte-order mark; .gz and .bz2 too.
        columns: names of the columns that must be there; others are returned too.

    Raises:
        DataError: the file cannot be read, a column is missing, or a row has another number of
            fields than the heading.
    """
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if missing := [column for column in columns if column not in header]:
                raise DataError(
                    f"{path} must have the columns {', '.join(columns)}; {', '.join(missing)} "
                    f"missing among {', '.join(header)[:200]!r}"
                )
            for row in reader:
                where = f"{path}, row {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{where} must have {len(header)} fields as its heading has; check that "
                        "the file is complete"
                    )
                yield FileRow(row, where, reader.line_num)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def require_object(row: Any, where: str) -> dict[str, Any]:
    """Return the row itself; raise DataError unless it is a JSON object."""
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object, got {repr(row)[:80]}")
    return row


def _checked(found: Any, name: str, kind: type[_Value], where: str) -> _Value:
    value = found
    if kind in (int, float) and isinstance(value, str):
        value = _number(value, kind)
    if kind is int and isinstance(value, float) and value.is_integer():  # as tables write them
        value = int(value)
    if type(value) is int and abs(value) > MAX_INTEGER:
        value = None
    if kind is float and type(value) is int:
        value = float(value)
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not is_right or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(
            f"{where}: the field {name!r} must be {_KIND_WORDS.get(kind, kind.__name__)}, "
            f"got {repr(found)[:80]}"
        )
    return cast(_Value, value)


def whole_number(text: str) -> int | None:
    """The number that digits spell; None for other text, and for more digits than ids have."""
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _number(text: str, kind: type[Any]) -> Any:
    """The number a text holds, or the text: Python's own 1_000 is no number in a data file."""
    try:
        return text if "_" in text else kind(text)
    except ValueError:
        return text
