"""Answers that come in any order become parts that are written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.jobs.labelling.labeller import Refused
from paligemma.jobs.labelling.records import Record
from paligemma.jobs.labelling.work import Work
from paligemma.outputs.missing_masks import MissingMasks


class Kept:
    """Writes parts as soon as their last answer is there; see `LabelFolder.note_begun`.

    Args:
        timing: see `Work.write`.
        bar: shows progress.
        began: when the run began, by `time.monotonic`.

    Attributes:
        num_rows: rows of the parts that were written.
        missing: objects of these rows that came without a mask, though one was asked for.
    """

    def __init__(self, folder: LabelFolder, *, timing: bool, bar: Any, began: float) -> None:
        self.folder, self._timing, self._bar, self._began = folder, timing, bar, began
        self.num_rows = 0
        self.missing = MissingMasks()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *raised: object) -> None:
        """Not reached by a kill: what that leaves open counts as a death."""
        self.folder.take_back_begun()

    def begin(self, work: Work) -> None:
        """Note that a part is about to be answered; one without a row to ask is written."""
        self.folder.note_begun(work.part.number)
        if work.is_done:
            self._write(work, "")

    def take(
        self,
        work: Work,
        number: int,
        answers: Sequence[Record | Refused],
        seconds: float,
        worker: str = "",
    ) -> None:
        """Keep the answers to one batch of a part."""
        work.take(number, answers, seconds)
        if work.is_done:
            self._write(work, worker)

    def _write(self, work: Work, worker: str) -> None:
        at = time.monotonic() - self._began
        self.missing.include(work.write(self.folder, timing=self._timing, at=at, worker=worker))
        self.folder.note_begun(work.part.number, ended=True)
        self.num_rows += work.part.num_rows
        self._bar.update(work.part.num_rows)
