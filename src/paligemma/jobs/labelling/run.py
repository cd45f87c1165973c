"""Labels an input: part after part, in this process or in several, each row exactly once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from paligemma.errors import ConfigError, DataError
from paligemma.jobs.answerer import Answerer, NumberedBatch, answered
from paligemma.jobs.cluster import Cluster
from paligemma.jobs.labelling.finding import open_input
from paligemma.jobs.labelling.folder import LISTING, LabelFolder
from paligemma.jobs.labelling.inputs import Input
from paligemma.jobs.labelling.kept import Kept
from paligemma.jobs.labelling.labeller import Labeller, Refused
from paligemma.jobs.labelling.records import Record
from paligemma.jobs.labelling.work import Plan, Work
from paligemma.outputs.missing_masks import MissingMasks
from paligemma.tasks.own.columns import fields_of
from paligemma.tasks.own.hub_set import is_hub_set

logger = logging.getLogger(__name__)

PART_ROWS, BATCH_SIZE = 256, 32


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What is labelled, and where to.

    Attributes:
        input: see `finding.open_input`.
        output: folder of the labels; one that is there goes on.
        prompt: template such as "detect cat ; dog" or "answer en {question}".
        form: "jsonl" or "parquet".
        part_rows: rows that are written together, and lost together by a kill.
        batch_size: rows that are asked together.
        limit: rows of the input that are taken; None takes all.
        pictures: folder below which named pictures lie; that of their file by default.
        column: field or column of the picture.
        split: of a data set.
        timing: write seconds beside each row; files then differ between runs.
    """

    input: str | os.PathLike[str]
    output: str | os.PathLike[str]
    prompt: str
    form: str = "jsonl"
    part_rows: int = PART_ROWS
    batch_size: int = BATCH_SIZE
    limit: int | None = None
    pictures: Path | None = None
    column: str = "image"
    split: str | None = None
    timing: bool = False

    def __post_init__(self) -> None:
        for name in ("part_rows", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a run came to.

    Attributes:
        folder: where the labels lie.
        num_rows: rows of the input.
        num_quarantined: those without an answer; their reasons lie in the folder.
        num_new: rows of the parts that this run answered.
        seconds: of this run.
        missing: objects of the new rows that came without a mask, though one was asked for.
    """

    folder: LabelFolder
    num_rows: int
    num_quarantined: int
    num_new: int
    seconds: float
    missing: MissingMasks


def label(
    job: Labelling,
    labeller: Labeller | Cluster,
    *,
    num_threads: int = 2,
    retry: bool = False,
    progress: bool = False,
    record: Mapping[str, Any] | None = None,
) -> Labelled:
    """Label what is not labelled yet.

    Args:
        labeller: labels in this process, or a cluster whose processes do.
        num_threads: threads of each process that read pictures ahead.
        retry: ask rows without an answer again, with their parts.
        progress: show a bar on standard error.
        record: what batch.json also holds, such as the command.

    Raises:
        ConfigError: the folder holds another labelling, another process writes there, or a cluster
            has too little room.
        DataError: there is no such input, or it was changed since.
    """
    began = time.monotonic()
    folder = LabelFolder(job.output, job.form)
    with folder, ExitStack() as stack:
        source = open_input(
            job.input,
            folder.path / LISTING,
            pictures=job.pictures,
            column=job.column,
            columns=("id", *fields_of(job.prompt)),
            split=job.split,
        )
        workers: Any = labeller
        if isinstance(labeller, Cluster):
            from paligemma.jobs.labelling.spread import Workers

            workers = stack.enter_context(Workers(labeller, num_threads))
        settings = workers.settings()
        _begin(folder, job, source, settings, record or {})
        if retry:
            folder.reopen_quarantined()
        plan = Plan(
            source=source,
            prompt=job.prompt,
            part_rows=job.part_rows,
            batch_size=job.batch_size,
            limit=job.limit,
        )
        bar = stack.enter_context(tqdm(unit="row", disable=not progress, smoothing=0.05))
        kept = Kept(folder, timing=job.timing, bar=bar, began=began)
        num_processes = labeller.num_workers if isinstance(labeller, Cluster) else 1
        folder.note_run(num_processes, time.monotonic() - began)
        if isinstance(labeller, Cluster):
            workers.answer(plan, kept)
        else:
            _answer_here(plan, kept, labeller, num_threads)
        parts = folder.parts()
        if not parts:
            raise DataError(f"{job.input} holds no row; check it")
        num_quarantined = sum(_num_lines(path) for path in folder.quarantine_files())
    return Labelled(
        folder=folder,
        num_rows=parts[-1].first_row + parts[-1].num_rows,
        num_quarantined=num_quarantined,
        num_new=kept.num_rows,
        seconds=time.monotonic() - began,
        # Without a codec no mask can come, of which the loading warned.
        missing=kept.missing if settings.get("mask_codec") else MissingMasks(),
    )


def _begin(
    folder: LabelFolder,
    job: Labelling,
    source: Input,
    labeller: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    settings = {
        "prompt": job.prompt,
        "batch_size": job.batch_size,
        "part_rows": job.part_rows,
        "limit": job.limit,
        "timing": job.timing,
        "input": source.identity(),
        "column": job.column,
        "folders": source.folders(),
        "labeller": dict(labeller),
    }
    named = {
        "named": job.input if is_hub_set(str(job.input)) else os.path.abspath(job.input),
        "pictures": None if job.pictures is None else os.path.abspath(job.pictures),
        "column": job.column,
        "split": job.split,
    }
    folder.begin(settings, {"input": named, **record})


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _answer_here(plan: Plan, kept: Kept, labeller: Labeller, num_threads: int) -> None:
    """Answer all open parts in this process.

    Batches of the next part are read while the last ones of a part are answered. Parts over which
    a process died come last, row by row.
    """
    sent: dict[int, tuple[Work, int]] = {}
    alone: list[Work] = []

    def batches() -> Iterator[NumberedBatch]:
        ticket = 0
        for work in plan.works(kept.folder):
            if work.is_alone:
                alone.append(work)
                continue
            kept.begin(work)
            for number in range(len(work.batches)):
                sent[ticket] = work, number
                yield ticket, work.batch(number)
                ticket += 1

    with kept:
        last = time.perf_counter()
        for ticket, answers in answered(cast(Answerer, labeller), batches(), num_threads):
            work, number = sent.pop(ticket)
            now = time.perf_counter()
            kept.take(work, number, cast("list[Record | Refused]", answers), now - last)
            last = now
        for work in alone:
            kept.begin(work)
            for number in range(len(work.batches)):
                one = work.batch(number)
                kept.folder.note_begun(work.part.number, int(one[0].id))
                last = time.perf_counter()
                found = labeller.answer(one, labeller.read(one))
                kept.folder.note_begun(work.part.number, int(one[0].id), ended=True)
                kept.take(work, number, found, time.perf_counter() - last)
