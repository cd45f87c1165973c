"""A benchmark without files and something quick that answers it; torch is never imported."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.tasks.task import Task

NUM_EXAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Grey:
    """A picture of one grey level."""

    level: int

    def read(self, max_pixels: int) -> np.ndarray:
        return np.full((4, 4, 3), self.level, np.uint8)


def read_toy(data: Path, split: str) -> Iterator[Example]:
    """Prompts of unequal length, up to three about one picture."""
    for number in range(NUM_EXAMPLES):
        yield Example(
            id=f"{split}/{number}",
            prefix="answer en " + "why " * (number * 7 % 11),
            pictures=(Grey(level=number * 2 // 5),),
            references=str(number % 3),
            slices={"third": str(number % 3)},
            unit=str(number * 2 // 5),
        )


def score_toy(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    pairs = zip(examples, predictions, strict=True)
    return [mean_measure("accuracy", [float(p.text[:1] == e.references) for e, p in pairs])]


TOY = Task(
    name="toy",
    title="Toy",
    family="answers",
    splits=("test", "val"),
    headline="accuracy",
    asking=Asking(text_len=64, max_new_tokens=4),
    files=(),
    reader=read_toy,
    score=score_toy,
)


class ToyAnswerer:
    """Answers that depend on every example of the batch, as rounding makes a model's."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[str]] = []

    def settings(self) -> Mapping[str, Any]:
        return {"model": "toy"}

    def read(self, examples: Sequence[Example]) -> list[int]:
        return [int(picture.read(99)[0, 0, 0]) for one in examples for picture in one.pictures]

    def answer(self, examples: Sequence[Example], prepared: list[int]) -> list[Prediction]:
        time.sleep(self.seconds)
        self.batches.append([one.id for one in examples])
        whole = " ".join(one.id + one.prefix for one in examples) + str(prepared)
        digests = [hashlib.sha256((one.id + whole).encode()).digest() for one in examples]
        return [
            Prediction(id=one.id, text=f"{d[0] % 3} {d.hex()}", logprob=-d[1] / 7)
            for one, d in zip(examples, digests, strict=True)
        ]
