"""Runs a benchmark: reads its examples and has them answered as a job that survives a kill."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma.errors import ConfigError, DataError, ImageError
from paligemma.eval.options import EvalOptions
from paligemma.eval.scored import some_ids
from paligemma.example import Example
from paligemma.jobs.answerer import Answerer
from paligemma.jobs.cluster import Cluster
from paligemma.jobs.plan import sample_examples
from paligemma.jobs.run_folder import Run, RunConfig, examples_digest
from paligemma.jobs.runner import Job, environment
from paligemma.processing.image import MAX_PIXELS
from paligemma.tasks.reading.finding import look_again
from paligemma.tasks.task import Task

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma

logger = logging.getLogger(__name__)

# Examples whose pictures are tried before anything is asked.
NUM_TRIED = 8


def evaluate(
    task: Task,
    asked: PaliGemma | Answerer | Cluster,
    data: str | Path | None,
    split: str,
    options: EvalOptions,
    folder: str | Path,
    *,
    model: str = "",
    command: str = "",
    progress: bool = False,
) -> Run:
    """Answer a split of a benchmark, or go on with a run that was cut.

    Args:
        asked: model that is measured, anything else that answers, or a cluster of it.
        data: folder of the benchmark's files; None for a task that draws its own.
        folder: folder of the run, see `jobs.run_folder`; new, or of the same run.

    Raises:
        ConfigError: a split, folder or option that does not fit.
        DataError: the benchmark's files are not there, or not as documented.
    """
    from paligemma.jobs.model_answerer import ModelAnswerer
    from paligemma.pipeline.paligemma import PaliGemma

    answerer: Answerer | Cluster = (
        ModelAnswerer(asked, **options.answering(task)) if isinstance(asked, PaliGemma) else asked
    )
    settings = answerer.settings()
    examples = _examples(task, data, split, options)
    if isinstance(asked, PaliGemma):
        examples = _with_masks(task, asked, examples)
    if data is not None:
        require_pictures(examples, f"{task.name} {split} in {data}")
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
            **settings,
        },
        sampling={"limit": options.limit, "seed": options.seed},
        command=command or shlex.join(["paligemma", *sys.argv[1:]]),
        environment=environment(),
        rules=options.rules,
    )
    job = Job.begin(folder, config, examples, options.batch_size)
    return job.run(answerer, num_workers=options.num_workers, progress=progress)


def _examples(
    task: Task, data: str | Path | None, split: str, options: EvalOptions
) -> list[Example]:
    """The examples that are asked, in the reader's order."""
    if data is None and task.files:
        raise ConfigError(
            f"{task.name} reads files from a data folder, got none; name it with --data"
        )
    stream = task.read(Path("." if data is None else data), split)
    return sample_examples(
        options.prompted(stream),
        options.limit,
        options.seed,
        where=f"{task.name} {split}" + ("" if data is None else f" in {data}"),
    )


def _with_masks(task: Task, asked: PaliGemma, examples: list[Example]) -> list[Example]:
    """The examples with the true masks that a model with a mask codec can be held against."""
    if task.with_masks is None or not any(
        isinstance(one.references, dict) and one.references.get("slice") == "segment"
        for one in examples
    ):
        return examples
    codec = asked.mask_codec
    if codec is None:
        return examples
    examples = [task.with_masks(one, codec) for one in examples]
    rows = [one for one in examples if one.references.get("slice") == "segment"]
    without = [
        one.id for one in rows if any("mask" not in found for found in one.references["objects"])
    ]
    if without:
        logger.warning(
            "%d of %d rows with segment prompts lack a mask that can be read, and are measured by "
            "boxes alone: %s",
            len(without),
            len(rows),
            some_ids(without),
        )
    return examples


def require_pictures(examples: Iterable[Example], where: str) -> None:
    """Refuse to ask anything where not one of the first pictures can be read.

    Raises:
        DataError: none of them can; the message says where the first was looked for.
    """
    look_again()
    failed: list[ImageError] = []
    for one in islice(examples, NUM_TRIED):
        try:
            for picture in one.pictures:
                picture.read(MAX_PIXELS)
        except ImageError as error:
            failed.append(error)
        else:
            return
    if failed:
        raise DataError(
            f"a run needs the pictures of {where}, but none of the first {len(failed)} examples "
            f"has one that can be read, so nothing was asked: {failed[0]}"
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
