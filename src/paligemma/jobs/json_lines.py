"""Examples and predictions as lines of JSON, and back, with every fault named by file and line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.json_file import parse_json
from paligemma.outputs.boxes import Box

# An answer with the masks of a hundred objects stays far below.
MAX_LINE_BYTES = 64 << 20


def read_rows(path: Path, *, drop_torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and objects of a JSON-lines file; empty lines are skipped.

    Args:
        drop_torn: leave out a last line without its newline, as a kill leaves it.

    Raises:
        DataError: unreadable, or a line that is no JSON object.
    """
    for number, line in read_lines(path, drop_torn=drop_torn):
        yield number, object_of(line, path, number)


def read_lines(path: Path, *, drop_torn: bool = False) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and lines of a file, as `read_rows` takes them; empty ones are skipped.

    Raises:
        DataError: unreadable, or a line beyond `MAX_LINE_BYTES`.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                if len(line) == MAX_LINE_BYTES:
                    raise DataError(
                        f"a line may have {MAX_LINE_BYTES} bytes, {path}, line {number} has more; "
                        "mend the line"
                    )
                if drop_torn and not line.endswith(b"\n"):
                    return
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path} must be a readable file ({error}); check the path") from error


def object_of(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The JSON object of a line; raise DataError where it holds none."""
    try:
        row = parse_json(line, finite=False)
    except ValueError as error:  # also bytes that are no UTF-8
        raise DataError(f"{path}, line {number} is no JSON ({error}); mend the line") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number} must be a JSON object, got {type(row).__name__}; mend the line"
        )
    return row


def example_to_json(one: Example) -> dict[str, Any]:
    """A line of examples.jsonl; pictures as words, to be found by a person."""
    row: dict[str, Any] = {"id": one.id, "prefix": one.prefix, "references": one.references}
    if one.slices:
        row["slices"] = dict(one.slices)
    if one.unit is not None:
        row["unit"] = one.unit
    if one.mark_box_yxyx is not None:
        row["mark_box_yxyx"] = list(one.mark_box_yxyx)
    row["pictures"] = [picture_words(picture) for picture in one.pictures]
    return row


def picture_words(picture: object) -> Any:
    """The fields of a picture's dataclass as JSON, paths as text; its text otherwise."""
    if not dataclasses.is_dataclass(picture):
        return str(picture)
    known = [one for one in dataclasses.fields(picture) if one.repr]
    fields = {one.name: getattr(picture, one.name) for one in known}
    return {
        name: value if isinstance(value, int | float | str | bool | None) else str(value)
        for name, value in fields.items()
    }


def example_from_json(row: Mapping[str, Any], where: str) -> Example:
    """The example of a line, without pictures and targets.

    Raises:
        DataError: a field is missing or of another kind.
    """
    missing = [name for name in ("id", "prefix", "references") if name not in row]
    if missing:
        raise DataError(f"{where} must hold id, prefix and references, misses {missing}")
    mark = row.get("mark_box_yxyx")
    fields = {"id": str, "prefix": str, "slices": dict, "unit": str | None}
    for name, kind in fields.items():
        if name in row and not isinstance(row[name], kind):
            raise DataError(f"{where}: {name} is of the wrong kind, got {row[name]!r:.80}")
    return Example(
        id=row["id"],
        prefix=row["prefix"],
        pictures=(),
        references=row["references"],
        slices={
            key: tuple(value) if isinstance(value, list) else value
            for key, value in row.get("slices", {}).items()
        },
        unit=row.get("unit"),
        mark_box_yxyx=None if mark is None else box_of(mark, where),
    )


def prediction_to_json(one: Prediction) -> dict[str, Any]:
    """A line of predictions.jsonl; what is None or empty is left out."""
    row: dict[str, Any] = {"id": one.id, "text": one.text}
    if one.logprob is not None:
        row["logprob"] = finite(one.logprob)
    if one.objects:
        row["objects"] = [_found_to_json(found) for found in one.objects]
    if one.error is not None:
        row["error"] = one.error
    if one.note is not None:
        row["note"] = one.note
    return row


def _found_to_json(one: FoundObject) -> dict[str, Any]:
    row: dict[str, Any] = {"label": one.label, "box_yxyx": [float(c) for c in one.box_yxyx]}
    if one.score is not None:
        row["score"] = finite(one.score)
    if one.mask is not None:
        row["mask"] = dict(one.mask)
    return row


def finite(value: float) -> float | None:
    """The number; None where it is infinite or NaN, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def prediction_from_json(row: Mapping[str, Any], where: str) -> Prediction:
    """The prediction of a line.

    Raises:
        DataError: a field is missing or of another kind.
    """
    name, text = row.get("id"), row.get("text")
    if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(text, str):
        raise DataError(
            f"{where} must hold an id and a text, got id {name!r} and text of type "
            f"{type(text).__name__}; write both as strings"
        )
    if any("\ud800" <= character <= "\udfff" for character in str(name)):
        raise DataError(f"{where}: an id must be Unicode that files can hold, got {name!a}")
    objects = row.get("objects", [])
    if not isinstance(objects, list):
        raise DataError(f"{where}: objects must be a list, got {type(objects).__name__}")
    logprob = row.get("logprob")
    for field in ("error", "note"):
        if not isinstance(said := row.get(field), str | None):
            raise DataError(
                f"{where}: {field} must be text, got {said!r:.80}; write why, or leave it"
            )
    return Prediction(
        id=str(name),
        text=text,
        logprob=None if logprob is None else number_of(logprob, f"{where}: logprob"),
        objects=tuple(_found_from_json(one, where) for one in objects),
        error=row.get("error"),
        note=row.get("note"),
    )


def _found_from_json(row: Any, where: str) -> FoundObject:
    if not isinstance(row, dict) or not isinstance(row.get("label"), str):
        raise DataError(f"{where}: an object must hold a label and a box_yxyx, got {row!r:.80}")
    score, mask = row.get("score"), row.get("mask")
    if mask is not None and not isinstance(mask, dict):
        raise DataError(f"{where}: a mask must be COCO run lengths, got {type(mask).__name__}")
    return FoundObject(
        label=row["label"],
        box_yxyx=box_of(row.get("box_yxyx"), where),
        score=None if score is None else number_of(score, f"{where}: score"),
        mask=mask,
    )


def box_of(value: Any, where: str) -> Box:
    """Four numbers, possibly NaN; the caller decides what becomes of those."""
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"{where}: a box is [ymin, xmin, ymax, xmax], got {value!r:.80}")
    y0, x0, y1, x1 = (number_of(c, f"{where}: a box coordinate") for c in value)
    return y0, x0, y1, x1


def number_of(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} must be a number, got {value!r:.80}")
    return float(value)
