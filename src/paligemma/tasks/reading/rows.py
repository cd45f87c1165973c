"""The shapes of annotation files: a list of objects, alone or under a name, or one object a key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from paligemma.errors import DataError

Row = dict[str, Any]
_Value = TypeVar("_Value")


def list_rows(table: Any, path: Path, name: str | None = None) -> Iterator[tuple[int, Row]]:
    """The objects of a list, numbered from 0.

    Args:
        table: what the file holds.
        path: for the error.
        name: key of the list in the file; None where the file is the list.

    Raises:
        DataError: another shape.
    """
    if name is not None:
        if not isinstance(table, dict) or name not in table:
            found = sorted(table)[:5] if isinstance(table, dict) else type(table).__name__
            raise DataError(f"{path} must hold an object with the list {name!r}, got {found}")
        table = table[name]
    if not isinstance(table, list):
        raise DataError(f"{path} must hold a list of rows, got {type(table).__name__}")
    for number, row in enumerate(table):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number} must be an object, got {row!r:.80}")
        yield number, row


def keyed_rows(table: Any, path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of an object, with their keys.

    Raises:
        DataError: another shape.
    """
    if not isinstance(table, dict):
        raise DataError(f"{path} must hold one object a key, got {type(table).__name__}")
    for key, row in table.items():
        if not isinstance(row, dict):
            raise DataError(f"{path}, {key} must be an object, got {row!r:.80}")
        yield key, row


def of_split(names: Mapping[str, _Value], split: str, task: str) -> _Value:
    """What belongs to a split.

    Raises:
        DataError: no such split.
    """
    if split not in names:
        raise DataError(f"{task} has the splits {', '.join(names)}, got {split!r}")
    return names[split]
