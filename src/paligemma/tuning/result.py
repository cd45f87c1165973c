"""What a fine-tuning returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.jobs.json_lines import read_rows as read_json_lines
from paligemma.train.loop import METRICS_FILE
from paligemma.tuning.folder import ADAPTER, PAGE, TRAIN


@dataclass(frozen=True, kw_only=True)
class FigureChange:
    """One figure before and after, times 100 where it is a share."""

    name: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class FinetuneRun:
    """What a fine-tuning left.

    Attributes:
        folder: folder of the run.
        result: folder of the adapter, or of the model.
        figures: figures of held-out rows before and after.
        skipped: sentences on rows that were left out.
        updates: how many this call made; 0 where the run had ended before.
        inexact: sentences on rows that were to be learnt by heart and are not.
    """

    folder: Path
    result: Path
    figures: tuple[FigureChange, ...]
    skipped: tuple[str, ...]
    updates: int
    inexact: tuple[str, ...] = ()

    @property
    def adapter(self) -> Path | None:
        """Folder of the adapter; None where the whole model was trained."""
        return self.result if self.result.name == ADAPTER else None

    @property
    def report(self) -> Path:
        """The page with curves, figures and examples."""
        return self.folder / PAGE

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: step, loss, gradient norm, ...; edited ones are left out."""
        path = self.folder / TRAIN / METRICS_FILE
        rows = [row for _, row in read_json_lines(path)] if path.exists() else []
        return [row for row in rows if row.keys() >= {"step", "loss", "schedule"}]
