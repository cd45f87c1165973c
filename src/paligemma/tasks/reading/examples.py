"""The commonest shape of an example: one prompt, and answers that are also targets."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from paligemma.example import Example, Picture
from paligemma.tasks.reading.file_rows import FileRow

# A row with the names of the official fields, and its picture: of official files or of a hub copy.
SourceRow = tuple[FileRow, Picture]

# Characters of a list that is stored as text.
_MAX_PRINTED = 100_000


def example_of(
    name: str,
    prefix: str,
    *,
    picture: Picture | tuple[Picture, ...],
    answers: str | list[str],
    references: Any = None,
    targets: Iterable[str] | None = None,
    slices: Mapping[str, str | tuple[str, ...]] | None = None,
    unit: str | None = None,
) -> Example:
    """Build an example whose answers are its references and its targets.

    Args:
        name: id of the example.
        prefix: prompt of the example.
        picture: its picture, or several.
        answers: the one right answer, or all of them.
        references: data for the scorer to compare with; `answers` by default.
        targets: answers to train on; `answers` by default.
        slices: see `Example`.
        unit: see `Example`.
    """
    if targets is None:
        targets = [answers] if isinstance(answers, str) else answers
    return Example(
        id=name,
        prefix=prefix,
        pictures=picture if isinstance(picture, tuple) else (picture,),
        references=answers if references is None else references,
        targets=tuple(targets),
        slices=slices or {},
        unit=unit,
    )


def texts_in(row: FileRow, name: str, field: str) -> list[str]:
    """Read a list of texts, of objects with a text in `field`, or an object of such lists."""
    value = row.fields.get(name)
    if isinstance(value, dict) or (
        isinstance(value, list) and value and isinstance(value[0], dict)
    ):
        return [one.text(field) for one in objects_in(row, name)]
    return row.texts(name)


def objects_in(row: FileRow, name: str) -> list[FileRow]:
    """Read a list of objects, or an object of lists of equal length, as copies may store them."""
    value = row.fields.get(name)
    if not isinstance(value, dict):
        return row.objects(name)
    columns = row.object(name)
    lists = [columns.value(one, list) for one in value]
    if len({len(one) for one in lists}) > 1:
        raise row.error(f"the lists of {name} must have one length")
    return [
        FileRow(dict(zip(value, one, strict=True)), f"{row.where}, {name}")
        for one in zip(*lists, strict=True)
    ]


def printed_texts(row: FileRow, name: str) -> list[str]:
    """Read a list of texts, or one that was stored as Python prints it."""
    value = row.fields.get(name)
    if isinstance(value, str) and len(value) <= _MAX_PRINTED:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value)
    return FileRow({**row.fields, name: value}, row.where).texts(name)


def slices_of(row: FileRow, name: str) -> dict[str, str]:
    """Read a text by which scores are broken down, where the row has it."""
    return {name: row.text(name)} if row.fields.get(name) else {}
