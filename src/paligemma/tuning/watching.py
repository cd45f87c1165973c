"""Held-out rows, measured during a run with the figures of their own task.

    train/validation.jsonl           one line a look, that before the training first
    answers/step_0000000.jsonl       answers before; also of the best look and of the newest one
    best/step_0000050/               the adapter or the model of the best look

A look changes no update: a run that is watched ends with the same numbers as one that is not. Looks
follow from recipe and rows alone, so a run that goes on repeats those that a kill took.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from paligemma.errors import DataError
from paligemma.eval.scored import Scored, score_matched
from paligemma.example import NOISE, Example, Prediction
from paligemma.jobs.answerer import answered
from paligemma.jobs.json_lines import prediction_from_json, prediction_to_json, read_rows
from paligemma.jobs.model_answerer import ModelAnswerer
from paligemma.jobs.run_folder import RunConfig
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.tasks.task import Task
from paligemma.train.distributed import world
from paligemma.train.examples import ExampleSource, SuffixLoss, loss_weight
from paligemma.train.loop import Log, drop_lines_after
from paligemma.tuning.folder import ANSWERS, BEST, TRAIN, VALIDATION
from paligemma.tuning.probing import moved, probe
from paligemma.whole_file import write_whole

logger = logging.getLogger(__name__)

HELD_OUT = "held-out"
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Asks a model all held-out rows and scores its answers as their task does.

    Attributes:
        task: how rows are asked and scored.
        asked: the model, as it is at the moment it is asked.
        examples: the held-out rows, at least one.
        source: makes batches of them, as training reads rows but without anything drawn.
        objective: their loss.
        name: name of the model, for reports.
        progress: whether a bar is shown.
        noise_piece: see `Recipe`.
    """

    task: Task
    asked: PaliGemma
    examples: Sequence[Example] = field(repr=False)
    source: ExampleSource = field(repr=False)
    objective: SuffixLoss = field(repr=False)
    name: str = ""
    progress: bool = True
    noise_piece: str = NOISE

    def answers(self) -> list[Prediction]:
        """One answer a row, in order; several processes answer a share each."""
        own = [self.examples[k] for k in world().share(len(self.examples))]
        starts = range(0, len(own), _BATCH)
        batches = [(start, own[start : start + _BATCH]) for start in starts]
        answerer = ModelAnswerer(self.asked, self.task.asks, noise_piece=self.noise_piece)
        found = answered(answerer, batches, num_workers=1)
        shown = tqdm(
            found,
            desc="measuring",
            total=len(batches),
            unit="batch",
            leave=False,
            disable=not self.progress,
        )
        return world().gathered([one for _, predictions in shown for one in predictions])

    def scored(self, answers: Sequence[Prediction]) -> Scored:
        """Answers with the figures of the task."""
        config = RunConfig(task=self.task.name, split=HELD_OUT, model=self.name)
        return score_matched(self.task, config, self.examples, answers)

    @torch.no_grad()
    def loss(self) -> float | None:
        """The loss of the answers that were to be given, without smoothing and dropout."""
        rows = [one for one in self.examples if one.targets]
        rows = [rows[k] for k in world().share(len(rows))]
        total = weights = 0.0
        for start in range(0, len(rows), _BATCH):
            batch = self.source.batch_of(rows[start : start + _BATCH])
            weight = loss_weight(batch, self.objective.mean)
            total += weight * float(self.objective(self.asked.model, batch)[0])
            weights += weight
        sums = world().summed({"total": total, "weights": weights})
        total, weights = float(sums["total"]), float(sums["weights"])
        return round(total / weights, 5) if weights else None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at the held-out rows showed.

    Attributes:
        step: updates before it.
        loss: see `Judge.loss`.
        headline: name of the figure by which looks are compared.
        is_error: whether a low headline is better.
        figures: the task's figures, times 100 where they are shares.
        exact: share of the answers that are to the letter what was to be given.
        moved: how far logits lie from those before the training, as a share of the largest.
    """

    step: int
    loss: float | None
    headline: str
    is_error: bool
    figures: dict[str, float]
    exact: float
    moved: float

    @property
    def badness(self) -> float:
        """What the best look has least of."""
        value = self.figures.get(self.headline, math.nan)
        if math.isnan(value):
            return math.inf if self.loss is None else 1e9 + self.loss
        return value if self.is_error else -value

    def words(self) -> str:
        """The look in a line for people."""
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        value = self.figures.get(self.headline, math.nan)
        return f"step {self.step}: held-out {self.headline} {value:.1f}{loss}"


class Validation:
    """A `train.loop.Watch` that measures held-out rows and keeps the best.

    Args:
        judge: measures.
        folder: folder of the run.
        every: updates between two looks; None looks at the end alone.
        until_exact: whether the run ends as soon as every answer is exact.
        patience: looks without a better one after which the run ends; None never ends it.
        save: writes what is trained to a folder that is not there.
    """

    def __init__(
        self,
        judge: Judge,
        folder: Path,
        *,
        every: int | None,
        patience: int | None,
        save: Callable[[Path], object] | None,
        until_exact: bool = False,
    ) -> None:
        self.judge, self.folder = judge, folder
        self.every, self.patience, self._save = every, patience, save
        self.until_exact = until_exact
        self.log: Log | None = None
        self.looks: list[Look] = []
        # Before anything is trained, in a run that goes on too.
        self._start = probe(judge.asked.model)

    @property
    def _path(self) -> Path:
        return self.folder / TRAIN / VALIDATION

    @property
    def best(self) -> Look | None:
        """The best look at what was trained, the first of equal ones."""
        return min(self.looks[1:], key=lambda one: one.badness, default=None)

    @property
    def ends_run(self) -> bool:
        best = self.best
        if self.until_exact and self.looks[-1].step and self.looks[-1].exact == 1:
            return True
        if self.patience is None or best is None:
            return False
        return len(self.looks) - 1 - self.looks.index(best) >= self.patience

    def before(self) -> Look:
        """The look before the training, measured unless the run has it already."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        if not world().on_first(
            lambda: bool(self.looks and not self.looks[0].step and self.answers_of(0))
        ):
            world().on_first(lambda: drop_lines_after(self._path, -1))
            self.looks = []
            self.look(0)
        return self.looks[0]

    def begin(self, step: int) -> None:
        world().on_first(lambda: drop_lines_after(self._path, step))
        self._read()

    def is_due(self, step: int, *, is_last: bool) -> bool:
        return is_last or (self.every is not None and step % self.every == 0)

    def look(self, step: int) -> None:
        answers = self.judge.answers()
        scored = self.judge.scored(answers)
        # A value is computed anew whenever it is asked for.
        values = {one.name: one.value * one.scale for one in scored.measures}
        look = Look(
            step=step,
            loss=self.judge.loss(),
            headline=scored.headline.name,
            is_error=scored.headline.is_error,
            figures={name: round(x, 4) for name, x in values.items() if not math.isnan(x)},
            exact=sum(map(is_exact, self.judge.examples, answers)) / len(answers),
            moved=moved(self._start, probe(self.judge.asked.model)),
        )
        best, target = self.best, self.best_folder(step)
        is_best = best is None or look.badness < best.badness
        world().on_first(lambda: self._keep_answers(step, answers))
        if step and self._save and is_best:
            world().on_first(lambda: shutil.rmtree(target, ignore_errors=True))
            self._save(target)
        self.looks.append(look)
        world().on_first(lambda: self._record(look))
        if self.log is not None and world().is_first:
            loss = {} if look.loss is None else {"loss": look.loss}
            numbers = {**look.figures, **loss}
            self.log(step, {f"held_out/{name}": value for name, value in numbers.items()})
        if step and not look.moved:
            logger.warning(
                "after %d updates the model answers as it did before: raise the learning rate, or "
                "train longer",
                step,
            )
        say(self.judge.progress, look.words() + (" (best)" if look is self.best else ""))

    def _keep_answers(self, step: int, answers: Sequence[Prediction]) -> None:
        lines = (json.dumps(prediction_to_json(one)) + "\n" for one in answers)
        write_whole(self._answers(step), lines)

    def _record(self, look: Look) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(look)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._forget()

    def answers_of(self, step: int) -> list[Prediction]:
        """The answers of a look; empty where they are gone."""
        path = self._answers(step)
        try:
            found = [prediction_from_json(row, f"{path}, line {k}") for k, row in read_rows(path)]
        except DataError:
            return []
        ids = [one.id for one in self.judge.examples]
        return found if [one.id for one in found] == ids else []

    def best_folder(self, step: int) -> Path:
        """Where the best look's adapter or model lies."""
        return self.folder / BEST / f"step_{step:07d}"

    def _answers(self, step: int) -> Path:
        (self.folder / ANSWERS).mkdir(exist_ok=True)
        return self.folder / ANSWERS / f"step_{step:07d}.jsonl"

    def _forget(self) -> None:
        """Delete answers and weights that neither the best nor the newest look needs."""
        best = self.best
        wanted = {self.looks[-1].step, 0, *((best.step,) if best else ())}
        for path in (self.folder / ANSWERS).glob("step_*.jsonl"):
            if path.name not in {f"step_{step:07d}.jsonl" for step in wanted}:
                path.unlink()
        for path in (self.folder / BEST).glob("step_*"):
            if best is None or path != self.best_folder(best.step):
                shutil.rmtree(path)

    def _read(self) -> None:
        self.looks = world().on_first(self._stored)

    def _stored(self) -> list[Look]:
        looks: list[Look] = []
        if not self._path.is_file():
            return looks
        try:
            for _, row in read_rows(self._path, drop_torn=True):
                looks.append(Look(**row))
        except (DataError, TypeError):
            logger.warning("%s is damaged; what is gone is measured again", self._path)
        return looks


def say(progress: bool, words: str) -> None:
    """A line for people who watch, beside the bar."""
    if progress:
        tqdm.write(words, file=sys.stderr)
    else:
        logger.info("%s", words)


def is_exact(example: Example, answer: Prediction) -> bool:
    """Whether an answer is, to the letter, one of those that are taught."""
    return answer.text in example.targets


def digest(examples: Sequence[Example]) -> str:
    """A short number that names some rows, their prompts and their answers."""
    crc = 0
    for one in examples:
        crc = zlib.crc32(repr((one.id, one.prefix, one.targets)).encode(), crc)
    return f"{crc:08x}"
