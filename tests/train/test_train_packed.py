"""Many rows in few bytes: what is packed comes back, and a large set stays small."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from paligemma.tasks.own.labels import LabelledObject, OwnExample, UprightPicture
from paligemma.train.packed import PackedExamples


def example(number: int) -> OwnExample:
    box = (0.1, 0.2, 0.5, 0.5 + number % 100 / 1000)
    ring = np.array([(0.2, 0.1), (0.5, 0.1), (0.4, 0.5 + number % 7 / 100)])
    return OwnExample(
        id=f"train/{number}",
        prefix="segment king ; queen",
        pictures=(UprightPicture(path=Path(f"/sets/cards/{number:06d}.jpg")),),
        references={"task": "detect", "slice": "segment", "objects": [{"box_yxyx": list(box)}]},
        targets=(f"<loc{number % 1000:04d}><loc0200><loc0500><loc0600> king",),
        where=f"/sets/cards/train.jsonl, row {number}",
        objects=(LabelledObject(label="king", box_yxyx=box, rings=(ring,)),),
    )


def test_rows_come_back_as_they_were_from_any_place() -> None:
    rows = [example(number) for number in range(40)]
    packed = PackedExamples(rows)
    assert len(packed) == 40
    assert list(packed) == rows
    assert packed[-1] == rows[-1]
    assert packed[3:9:2] == rows[3:9:2]
    assert (packed[7].objects[0].rings[0] == rows[7].objects[0].rings[0]).all()  # type: ignore[attr-defined]
    with pytest.raises(IndexError):
        packed[40]
    assert list(packed.keep(lambda one: one.id.endswith("7"))) == rows[7::10]


def test_a_row_takes_a_few_hundred_bytes_and_a_worker_gets_them_as_one() -> None:
    packed = PackedExamples(example(number) for number in range(3000))
    assert packed.num_bytes / len(packed) < 300
    sent = pickle.dumps(packed)
    assert len(sent) < 1.1 * packed.num_bytes + 4096
    assert pickle.loads(sent)[2999] == example(2999)
