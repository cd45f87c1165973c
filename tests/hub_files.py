"""Small parquet copies of benchmarks in the columns of the hub, for tests of their reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from task_files import write_picture

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.tasks.catalog import find_task, tasks
from paligemma.tasks.reading.hub_columns import HUB_COPIES

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(path: Path) -> dict[str, Any]:
    """A picture as a data set of the hub stores it."""
    return {"bytes": path.read_bytes(), "path": None}


def write_copy(path: Path, rows: Sequence[Mapping[str, Any]], *, picture: str = "image") -> Path:
    """One parquet file with a row group for every two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    columns = {
        name: pa.array([row[name] for row in rows], _IMAGE if name == picture else None)
        for name in names
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@dataclass(frozen=True)
class Case:
    """A benchmark in both layouts.

    Attributes:
        official, copy: writers of the layouts below a folder; the first returns the pictures.
        answers: one prediction an example.
        predict: makes the prediction of an example and its answer, where text is not enough.
        same: fields of the examples that agree.
    """

    task: str
    split: str
    official: Callable[[Path], list[Path]]
    copy: Callable[[Path, list[Path]], object]
    answers: tuple[str, ...]
    same: tuple[str, ...] = ("id", "prefix", "references", "targets", "slices", "unit")
    predict: Callable[[Example, str], Prediction] = lambda one, text: Prediction(
        id=one.id, text=text
    )


def pictures(folder: Path, *names: str) -> list[Path]:
    return [
        write_picture(folder / name, size_wh=(12 + k, 8), color=(40 * k, 90, 200))
        for k, name in enumerate(names)
    ]


def read(task: str, data: Path, split: str) -> list[Example]:
    return list(find_task(task).read(data, split))


def with_copies(*families: str) -> set[str]:
    """Names of the benchmarks of some families whose copies are read."""
    found = {name for name, task in tasks().items() if task.from_rows is not None}
    assert found == set(HUB_COPIES)
    pages = {"answers", "documents", "robustness", "captions", "grounding", "structure"}
    assert {find_task(name).family for name in found} == pages
    return {name for name in found if find_task(name).family in families}


def require_same(case: Case, folder: Path) -> None:
    """A copy gives the examples, the pictures and the figures of the official files."""
    task = find_task(case.task)
    files = case.official(folder / "official")
    case.copy(folder / "copy", files)
    official = read(case.task, folder / "official", case.split)
    copied = read(case.task, folder / "copy", case.split)
    assert len(copied) == len(official) == len(case.answers)
    for theirs, ours in zip(official, copied, strict=True):
        for name in case.same:
            assert getattr(ours, name) == getattr(theirs, name)
        ours_px, theirs_px = (one.pictures[0].read(10_000) for one in (ours, theirs))
        np.testing.assert_array_equal(ours_px, theirs_px)

    def figures(examples: list[Example]) -> dict[str, float]:
        said = [case.predict(*pair) for pair in zip(examples, case.answers, strict=True)]
        return {one.name: one.value for one in task.score(examples, said)}

    assert figures(copied) == figures(official)
    assert next(iter(figures(copied).values())) > 0


def require_sentences(case: Case, folder: Path) -> None:
    """A column of nulls, of a huge number or of lists ends in a sentence, if it matters at all."""
    case.copy(folder / "copy", case.official(folder / "official"))
    path = min((folder / "copy").rglob("*.parquet"))
    table = pq.read_table(path)
    for place, name in enumerate(table.column_names):
        for value in (None, "9" * 5000, [None]):
            column = pa.array([value] * len(table))
            pq.write_table(table.set_column(place, name, column), path, row_group_size=2)
            with suppress(DataError):
                read(case.task, folder / "copy", case.split)
    pq.write_table(table, path)
