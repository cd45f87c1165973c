"""Runs a job: answers examples batch by batch and keeps every answer at once.

A run that is killed goes on where it stood and ends with the same answers, because its batches are
fixed beforehand (`plan`) and each is on disk before the next begins (`run_folder`). Nothing here
needs a model: the caller passes an answerer.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from tqdm.auto import tqdm

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.jobs.answerer import Answerer, NumberedAnswers, NumberedBatch, answered
from paligemma.jobs.cluster import Cluster
from paligemma.jobs.plan import open_batches, plan_batches
from paligemma.jobs.run_folder import Run, RunConfig, RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Examples that are about to be answered.

    Attributes:
        folder: folder of the run, on disk with run.json and examples.jsonl.
        examples: questions in order, with pictures.
        plan: batches as positions in `examples`.
    """

    folder: RunFolder
    examples: Sequence[Example]
    plan: Sequence[tuple[int, ...]]

    @classmethod
    def begin(
        cls,
        path: str | os.PathLike[str],
        config: RunConfig,
        examples: Sequence[Example],
        batch_size: int,
    ) -> Job:
        """Fix the batches, and begin the folder unless it is there.

        Args:
            path: folder of the run; new, or of the same run.
            config: record of the run; its settings hold everything that changes an answer.
            examples: questions in order.
            batch_size: most examples that are answered together.

        Raises:
            ConfigError: the folder holds another run or cannot be written.
        """
        folder = RunFolder.create(path, config, examples)
        return cls(folder=folder, examples=examples, plan=plan_batches(examples, batch_size))

    def run(
        self, answerer: Answerer | Cluster, *, num_workers: int = 0, progress: bool = False
    ) -> Run:
        """Answer what is open; returns the run with its pictures and all answers on disk.

        Args:
            answerer: answers in this process, or a cluster that does.
            num_workers: threads of this process that read pictures ahead.
            progress: show a bar with the time left on standard error.

        Raises:
            ConfigError: another process writes to the folder.
            DataError: an answerer answered other examples than those of the batch.
        """
        with self.folder:
            # Read under the lock: what another writer has just answered is not asked again.
            before = self.folder.predictions()
            batches = self._open({name for name, one in before.items() if one.error is None})
            answers = (
                answerer.answered(batches)
                if isinstance(answerer, Cluster)
                else answered(answerer, batches, num_workers)
            )
            self._keep(answers, before, progress=progress)
        return self._finished()

    def _open(self, done: Container[str]) -> Iterator[NumberedBatch]:
        for number in open_batches(self.plan, self.examples, done):
            yield number, self._batch(number)

    def _batch(self, number: int) -> list[Example]:
        return [self.examples[position] for position in self.plan[number]]

    def _keep(
        self,
        answers: Iterable[NumberedAnswers],
        before: Mapping[str, Prediction],
        *,
        progress: bool,
    ) -> None:
        """Append what each batch adds to the answers that are there, as it comes.

        An answer is kept; an error gives way to an answer or to another error.
        """
        with tqdm(
            total=len(self.examples),
            initial=sum(one.id in before for one in self.examples),
            unit="example",
            disable=not progress,
            smoothing=0.05,
        ) as bar:
            for number, predictions in answers:
                asked = [one.id for one in self._batch(number)]
                if [one.id for one in predictions] != asked:
                    raise DataError(
                        f"batch {number} asked {len(asked)} examples and got {len(predictions)} "
                        "answers, or answers to others; an answerer must keep their order"
                    )
                new = [one for one in predictions if _adds(one, before.get(one.id))]
                self.folder.append(new)
                bar.update(sum(one.id not in before for one in new))

    def _finished(self) -> Run:
        run = self.folder.read(self.examples)
        if failed := run.failed:
            logger.warning(
                "%d of %d examples could not be asked and count as empty answers until the same "
                "command asks them again, such as %s: %s",
                len(failed),
                len(run.examples),
                failed[0].id,
                failed[0].error,
            )
        return run


def _adds(new: Prediction, old: Prediction | None) -> bool:
    if old is None:
        return True
    return old.error is not None and new.error != old.error


def environment() -> dict[str, str]:
    """Versions, for the record; torch is named only where it was loaded anyway."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("paligemma", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            continue
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = str(torch.__version__)
    return found
