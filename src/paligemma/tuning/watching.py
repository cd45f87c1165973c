"""Measuring a model on held-out rows, with the figures of their own task."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from paligemma.example import Example, Prediction
from paligemma.jobs.answerer import answered
from paligemma.jobs.model_answerer import ModelAnswerer
from paligemma.json_file import read_json
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.tasks.task import Task
from paligemma.whole_file import write_json

_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Asks a model all held-out rows and scores its answers as their task does.

    Attributes:
        task: how rows are asked and scored.
        asked: the model, as it is at the moment it is asked.
        examples: the held-out rows; without any there are no figures.
        progress: whether a bar is shown.
    """

    task: Task
    asked: PaliGemma
    examples: Sequence[Example] = field(repr=False)
    progress: bool = True

    def figures(self) -> dict[str, float]:
        """The figures of the task, times 100 where they are shares."""
        if not self.examples:
            return {}
        measures = self.task.score(self.examples, self.answers())
        # A value is computed anew whenever it is asked for.
        values = {one.name: one.value * one.scale for one in measures}
        return {name: round(value, 4) for name, value in values.items() if not math.isnan(value)}

    def figures_before(self, path: Path, described: dict[str, Any]) -> dict[str, float]:
        """The figures before any training, kept in a file: a run that goes on needs them again."""
        key = {"run": json.loads(json.dumps(described)), "rows": digest(self.examples)}
        if path.is_file():
            # Figures that are damaged are measured again.
            with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
                stored = read_json(path)
                if stored["key"] == key:
                    return {str(name): float(value) for name, value in stored["figures"].items()}
        found = self.figures()
        if self.examples:
            write_json(path, {"key": key, "figures": found})
        return found

    def answers(self) -> list[Prediction]:
        """One answer a row, in order."""
        starts = range(0, len(self.examples), _BATCH)
        batches = [(start, list(self.examples[start : start + _BATCH])) for start in starts]
        found = answered(ModelAnswerer(self.asked, self.task.asks), batches, num_workers=1)
        shown = tqdm(
            found,
            desc="measuring",
            total=len(batches),
            unit="batch",
            disable=not self.progress,
        )
        return [prediction for _, predictions in shown for prediction in predictions]


def digest(examples: Sequence[Example]) -> str:
    """A short number that names some rows, their prompts and their answers."""
    crc = 0
    for one in examples:
        crc = zlib.crc32(repr((one.id, one.prefix, one.targets)).encode(), crc)
    return f"{crc:08x}"
