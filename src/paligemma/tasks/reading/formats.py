"""Prompts and layouts that no paper gives: ours, which a file in the data folder may change."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from paligemma.errors import DataError
from paligemma.tasks.reading.file_rows import read_object
from paligemma.tasks.task import NeededFile

Format = TypeVar("Format")


def format_file(task: str) -> str:
    """Return the name of the file that sets the format of a benchmark."""
    return f"{task}-format.json"


def own_format(task: str, fields: str) -> NeededFile:
    """Build the entry of that file in a benchmark's list of files.

    Args:
        task: name of the benchmark.
        fields: names of the fields that the file may set.
    """
    source = "optional, written by you: the format of your model"
    return NeededFile(format_file(task), source, fields=fields)


def read_format(data: Path, task: str, default: Format) -> Format:
    """Read the format of a benchmark: ours, with the changes of the data folder.

    Args:
        data: the data folder; `{task}-format.json` in it may set some fields of the format.
        task: name of the benchmark.
        default: our format, a frozen dataclass of texts, numbers and truths.

    Raises:
        DataError: the file is no such object, or a field is unknown or of another type.
    """
    path = Path(data) / format_file(task)
    if not path.exists():
        return default
    own = read_object(path)
    known = {one.name: type(getattr(default, one.name)) for one in fields(default)}  # type: ignore[arg-type]
    if unknown := [name for name in own.fields if name not in known]:
        raise DataError(f"{path} may set {', '.join(known)}, got {', '.join(unknown)[:200]}")
    changed: dict[str, Any] = {name: own.value(name, known[name]) for name in own.fields}
    return replace(default, **changed)  # type: ignore[type-var]
