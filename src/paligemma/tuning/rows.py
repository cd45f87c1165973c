"""The rows of a fine-tuning: read, checked and split before anything is trained."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from paligemma.errors import DataError, ImageError
from paligemma.example import Asking, Example
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.pipeline.loading import find_mask_codec
from paligemma.processing.processor import Processor
from paligemma.tasks.own.labels import OwnExample
from paligemma.tasks.own.masks import answered
from paligemma.tasks.task import Task
from paligemma.train.examples import ExampleSource
from paligemma.weights.catalog import resolve

logger = logging.getLogger(__name__)

_HELD_OUT_SHARE, _MAX_HELD_OUT = 0.1, 200


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
    task: Task, data: Path, processor: Processor, codec: Callable[[], MaskCodec | None]
) -> tuple[list[Example], list[Example], list[str]]:
    """Read and check every row before the first step.

    Returns:
        Rows to learn from, rows to measure with, and a sentence for each row that was left out.

    Raises:
        DataError: no good row is left.
    """
    skipped: list[str] = []
    learnt = _good_rows(task, data, "train", processor, codec, skipped)
    if not learnt:
        first = f"; the first of {len(skipped)} faults: {skipped[0]}" if skipped else ""
        raise DataError(f"no row of {data} can be learnt from{first}")
    held_out: list[Example] = []
    for split in ("valid", "val", "test"):
        if split in task.splits and not held_out and not data.is_file():
            try:
                held_out = _good_rows(task, data, split, processor, codec, skipped)
            except DataError:
                logger.info("%s has no split %s", data, split)
    if not held_out:
        number = min(max(1, round(len(learnt) * _HELD_OUT_SHARE)), _MAX_HELD_OUT)
        if len(learnt) > 1:
            ranked = sorted(learnt, key=lambda one: zlib.crc32(one.id.encode()))
            chosen = {one.id for one in ranked[:number]}
            held_out = [one for one in learnt if one.id in chosen]
            learnt = [one for one in learnt if one.id not in chosen]
            logger.warning(
                "there is no valid.jsonl: %d of %d rows are held out to measure with",
                len(held_out),
                len(held_out) + len(learnt),
            )
    return learnt, held_out, skipped


def _good_rows(
    task: Task,
    data: Path,
    split: str,
    processor: Processor,
    codec: Callable[[], MaskCodec | None],
    skipped: list[str],
) -> list[Example]:
    source = ExampleSource(
        examples=(), asking_of=asking_of(task), processor=processor, batch_size=1, seed=0
    )
    good = []
    for example in task.rows(data, split):
        try:
            if isinstance(example, DataError):
                raise example
            if isinstance(example, OwnExample) and example.needs_masks:
                example = answered(example, codec())
            if not example.targets:
                raise DataError(f"{example.id}: it has no answer to learn")
            source.row(example)
            for picture in example.pictures:
                picture.read(processor.reader.max_pixels)
        except (DataError, ImageError) as error:
            skipped.append(str(error))
        else:
            good.append(example)
    return good


def asking_of(task: Task) -> Callable[[Example], Asking]:
    """How each example of a task is asked."""

    def asking(example: Example) -> Asking:
        return task.asking_for(example) if task.asking_for else task.asking

    return asking
