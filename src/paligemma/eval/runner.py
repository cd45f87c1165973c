"""Runs a benchmark: reads its examples, answers them batch by batch, keeps every answer at once.

A run that is killed goes on where it stood and ends with the same answers, because its batches are
fixed beforehand (`plan`) and each is on disk before the next begins (`run_folder`). Nothing here
needs a model: what answers is passed in.
"""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from paligemma.errors import ConfigError, DataError
from paligemma.eval.options import EvalOptions
from paligemma.example import MASK, Example, Prediction
from paligemma.jobs.plan import open_batches, plan_batches, sample_examples
from paligemma.jobs.run_folder import Run, RunConfig, RunFolder, examples_digest
from paligemma.tasks.task import Task

if TYPE_CHECKING:
    from paligemma.jobs.model_answerer import AskedModel

logger = logging.getLogger(__name__)


class Answerer(Protocol):
    """Something that answers examples: a model, or a stand-in."""

    def settings(self) -> Mapping[str, Any]:
        """What of it changes an answer, as JSON holds it; becomes part of the run's key."""
        ...

    def read(self, examples: Sequence[Example]) -> Any:
        """Whatever can be prepared without the model, such as pictures; may run in a thread."""
        ...

    def answer(self, examples: Sequence[Example], prepared: Any) -> list[Prediction]:
        """One prediction an example, in order; an unreadable picture is an `error` of its own."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A run that is about to be answered.

    Attributes:
        folder: on disk, with run.json and examples.jsonl.
        examples: in order, with pictures.
        plan: batches as positions in `examples`.
        open: numbers of the batches that are not complete.
        done: answers that are there already.
    """

    folder: RunFolder
    examples: Sequence[Example]
    plan: Sequence[tuple[int, ...]]
    open: Sequence[int]
    done: Mapping[str, Prediction]

    def batch(self, number: int) -> list[Example]:
        return [self.examples[position] for position in self.plan[number]]


def evaluate(
    task: Task,
    bundle: AskedModel,
    data: str | Path | None,
    split: str,
    options: EvalOptions,
    folder: str | Path,
    *,
    model: str = "",
    command: str = "",
    progress: bool = False,
) -> Run:
    """Answer a split of a benchmark with a model, or go on with a run that was cut.

    Args:
        task: the benchmark.
        bundle: model, processor and mask codec, as `paligemma.PaliGemma` is.
        data: folder of the benchmark's files; None for a task that draws its own.
        split: of the task.
        options: what the user changed.
        folder: of the run, see `run_folder`; new, or of the same run.
        model: name of the model, for the record.
        command: to run this again, for the record.
        progress: show a bar with the time left on standard error.

    Raises:
        ConfigError: a split, folder or option that does not fit.
        DataError: the benchmark's files are not there, or not as documented.
    """
    from paligemma.jobs.model_answerer import ModelAnswerer

    answerer = ModelAnswerer(
        bundle,
        options.asking_of(task),
        noise_piece=options.noise_piece,
        needs_masks=task.asking.answer == MASK,
    )
    return run_task(
        task,
        answerer,
        data,
        split,
        options,
        folder,
        model=model,
        command=command,
        progress=progress,
    )


def run_task(
    task: Task,
    answerer: Answerer,
    data: str | Path | None,
    split: str,
    options: EvalOptions,
    folder: str | Path,
    *,
    model: str = "",
    command: str = "",
    progress: bool = False,
) -> Run:
    """`evaluate` with anything that answers; arguments as there."""
    prepared = prepare(
        task, answerer.settings(), data, split, options, folder, model=model, command=command
    )
    with prepared.folder:
        batches = ((number, prepared.batch(number)) for number in prepared.open)
        answers = answered(answerer, batches, options.num_workers)
        keep(prepared, answers, progress=progress)
    return finished(prepared)


def prepare(
    task: Task,
    answerer_settings: Mapping[str, Any],
    data: str | Path | None,
    split: str,
    options: EvalOptions,
    folder: str | Path,
    *,
    model: str = "",
    command: str = "",
) -> Prepared:
    """Read the split, fix the batches, and begin the folder or find what is done in it."""
    splits = (*task.splits, *task.server_splits)
    if split not in splits:
        raise ConfigError(
            f"{task.name} has the splits {', '.join(splits)}, got {split!r}; name one of them"
        )
    if data is None and task.files:
        raise ConfigError(
            f"{task.name} reads files from a data folder, got none; name it with --data"
        )
    stream = task.read(Path("." if data is None else data), split)
    examples = sample_examples(
        options.prompted(stream),
        options.limit,
        options.seed,
        where=f"{task.name} {split}" + ("" if data is None else f" in {data}"),
    )
    config = RunConfig(
        task=task.name,
        split=split,
        model=model,
        data=None if data is None else str(data),
        settings={
            **options.settings(task),
            "prompt": options.prompt,
            "examples": examples_digest(examples),
            "num_examples": len(examples),
            **answerer_settings,
        },
        sampling={"limit": options.limit, "seed": options.seed},
        command=command or shlex.join(["paligemma", *sys.argv[1:]]),
        environment=environment(),
        rules=options.rules,
    )
    begun = RunFolder.create(folder, config, examples)
    done = begun.predictions()
    plan = plan_batches(examples, options.batch_size)
    return Prepared(
        folder=begun,
        examples=examples,
        plan=plan,
        open=open_batches(plan, examples, done),
        done=done,
    )


def answered(
    answerer: Answerer, batches: Iterable[tuple[int, list[Example]]], num_workers: int
) -> Iterator[tuple[int, list[Prediction]]]:
    """Answer batches in turn while `num_workers` threads read the pictures of those to come."""
    if not num_workers:
        for number, examples in batches:
            yield number, answerer.answer(examples, answerer.read(examples))
        return
    todo = iter(batches)
    with ThreadPoolExecutor(num_workers, thread_name_prefix="pictures") as pool:

        def begin(some: Iterable[tuple[int, list[Example]]]) -> list[_Ahead]:
            return [(number, one, pool.submit(answerer.read, one)) for number, one in some]

        ahead = begin(islice(todo, num_workers + 1))
        try:
            while ahead:
                number, examples, read = ahead.pop(0)
                yield number, answerer.answer(examples, read.result())
                ahead += begin(islice(todo, 1))
        finally:
            pool.shutdown(cancel_futures=True)


_Ahead = tuple[int, list[Example], "Future[Any]"]


def keep(
    prepared: Prepared, answers: Iterable[tuple[int, list[Prediction]]], *, progress: bool = False
) -> None:
    """Append the answers of each batch as it comes, without those that a cut batch left before.

    Raises:
        DataError: what answered gave other ids than it was asked.
    """
    done = prepared.done
    total = len(prepared.examples)
    with tqdm(
        total=total,
        initial=sum(one.id in done for one in prepared.examples),
        unit="example",
        disable=not progress,
        smoothing=0.05,
    ) as bar:
        for number, predictions in answers:
            asked = [one.id for one in prepared.batch(number)]
            if [one.id for one in predictions] != asked:
                raise DataError(
                    f"batch {number} asked {len(asked)} examples and got {len(predictions)} "
                    "answers, or answers to others; an answerer must keep their order"
                )
            new = [one for one in predictions if one.id not in done]
            prepared.folder.append(new)
            bar.update(len(new))


def finished(prepared: Prepared) -> Run:
    """The run with its pictures and all answers on disk; says what could not be asked."""
    folder = prepared.folder
    predictions = folder.predictions()
    failed = [one for one in predictions.values() if one.error is not None]
    if failed:
        logger.warning(
            "%d of %d examples could not be asked and count as empty answers, such as %s: %s",
            len(failed),
            len(prepared.examples),
            failed[0].id,
            failed[0].error,
        )
    return Run(
        path=folder.path,
        config=folder.config,
        examples=list(prepared.examples),
        predictions=predictions,
        num_duplicates=folder.num_duplicates,
    )


def read_again(task: Task, run: Run, ids: Iterable[str]) -> dict[str, Example]:
    """Examples of a run with their pictures, read from the data folder once more.

    Ids that the data no longer holds are left out.

    Raises:
        DataError: the data folder is not what it was.
    """
    wanted = set(ids)
    data = Path("." if run.config.data is None else run.config.data)
    found: dict[str, Example] = {}
    for one in task.read(data, run.config.split):
        if one.id in wanted:
            found[one.id] = one
            if len(found) == len(wanted):
                break
    return found


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
