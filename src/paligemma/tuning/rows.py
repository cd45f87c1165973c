"""The rows of a fine-tuning: read, checked and split before anything is trained."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

from tqdm.auto import tqdm

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.pipeline.loading import find_mask_codec
from paligemma.processing.processor import Processor
from paligemma.tasks.lint import Lint
from paligemma.tasks.mixture import MIXTURE
from paligemma.tasks.published import training_splits
from paligemma.tasks.task import Task
from paligemma.train.packed import PackedExamples
from paligemma.tuning.watching import say
from paligemma.weights.catalog import resolve

logger = logging.getLogger(__name__)

_HELD_OUT_SHARE, _MAX_HELD_OUT, _MAX_NAMED = 0.1, 200, 8
_TRAIN = "train"
# Splits that are measured with, the first of a task; one that is reported alone comes last.
_HELD_OUT = ("valid", "minival", "val", "validate", "dev", "test")


def codec_of(model: str) -> Callable[[], MaskCodec | None]:
    """Loads the mask codec of a model when first needed; says so where there is none."""

    @cache
    def load() -> MaskCodec | None:
        path = find_mask_codec(resolve(model))
        if path is None:
            logger.warning(
                "masks need a mask codec, which %s has not: `detect` and boxes are learnt; to "
                "measure with these prompts, too, set masks to false in own-format.json",
                model,
            )
        return None if path is None else load_mask_codec(path)

    return load


def read_rows(
    task: Task,
    data: Path,
    processor: Processor,
    codec: Callable[[], MaskCodec | None],
    *,
    transfer: str | None = None,
    progress: bool = False,
) -> tuple[Sequence[Example], Sequence[Example], list[str]]:
    """Read and check every row before the first step.

    Args:
        transfer: published transfer whose training splits are learnt from.
        progress: whether a bar is shown.

    Returns:
        Rows to learn from, rows to measure with, and a sentence for each row that was left out.

    Raises:
        DataError: no good row is left.
        ConfigError: the task has no split to learn from.
    """
    if _TRAIN not in task.splits:
        raise ConfigError(
            f"{task.name} is only measured with, it has no split to learn from (its splits are "
            f"{', '.join(task.splits[:_MAX_NAMED])}); name another task"
        )
    skipped: list[str] = []
    notes: Counter[str] = Counter()
    lint = Lint(task, processor, codec)

    def good(split: str) -> PackedExamples:
        kept, copies = PackedExamples(), PackedExamples()
        said: list[str] = []
        rows = lint.rows(data, split)
        for example, found in tqdm(
            rows, desc=f"checking {split}", unit="row", leave=False, disable=not progress
        ):
            errors = [one for one in found if one.is_error]
            notes.update(one.rule for one in found if not one.is_error)
            if example is None:
                skipped.extend(one.said for one in errors[:1])
            elif errors:
                copies.append(example)
                said.append(errors[0].said)
            else:
                kept.append(example)
        if kept:
            skipped.extend(said)
        elif copies:
            logger.warning(
                "all %d rows of %s show pictures that are learnt from: their figures tell what is "
                "remembered, not what is understood",
                len(copies),
                split,
            )
        return kept or copies

    parts: list[PackedExamples] = []
    learnt_from: list[str] = []
    for split in training_splits(task, transfer):
        try:
            parts.append(good(split))
            learnt_from.append(split)
        except DataError as error:
            if split == _TRAIN:
                raise
            logger.warning(
                "the published recipe learns from the split %s, which is left out: %s", split, error
            )
    learnt = parts[0] if parts else good(_TRAIN)
    for one in chain.from_iterable(parts[1:]):
        learnt.append(one)
    if learnt_from not in ([], [_TRAIN]):
        say(progress, f"as published, learnt from {' and '.join(learnt_from)}")
    if not learnt:
        first = f"; the first of {len(skipped)} faults: {skipped[0]}" if skipped else ""
        raise DataError(f"no row of {data} can be learnt from{first}")
    held_out: Sequence[Example] = ()
    is_file = data.is_file() and task.name != MIXTURE
    for split in () if is_file else dict.fromkeys((*_HELD_OUT, task.splits[0])):
        if split in task.splits and split not in learnt_from and not held_out:
            try:
                held_out = good(split)
            except DataError as error:
                logger.info("%s: no rows of the split %s: %s", data, split, error)
    if notes:
        shown = ", ".join(f"{rule} {number}" for rule, number in notes.most_common())
        logger.warning("rows to look at (%s); `paligemma data check` lists them", shown)
    if not held_out:
        number = min(max(1, round(len(learnt) * _HELD_OUT_SHARE)), _MAX_HELD_OUT)
        if len(learnt) > 1:
            ranked = sorted((one.id for one in learnt), key=lambda name: zlib.crc32(name.encode()))
            chosen = set(ranked[:number])
            held_out = learnt.keep(lambda one: one.id in chosen)
            learnt = learnt.keep(lambda one: one.id not in chosen)
            logger.warning(
                "%s has no rows to measure with (split valid): %d of its %d rows are held out",
                data,
                len(held_out),
                len(held_out) + len(learnt),
            )
    return learnt, held_out, skipped
