"""Replay against forgetting: what the model answered before the training, learnt beside the rows.

A share of every batch asks general prompts about the user's own pictures; the targets are the
model's own answers from before. Nothing else is needed, so it works for any model.

    replay.jsonl    the prompts and those answers; every fourth is held out and measured at the end
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import TEXT, Asking, Example
from paligemma.jobs.json_lines import read_rows
from paligemma.jobs.model_answerer import ModelAnswerer
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.tasks.task import Task
from paligemma.train.distributed import world
from paligemma.train.examples import ExampleSource
from paligemma.tuning.folder import REPLAY
from paligemma.whole_file import write_whole

PROMPTS = ("caption en", "ocr")
# Slice that marks a replayed row, by its prompt.
_MARK = "replay"
_NUM_PICTURES, _MAX_TOKENS, _BATCH, _HELD_OUT = 64, 64, 8, 4


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Rows that the model answered before.

    Attributes:
        learnt: those that are mixed into the batches.
        held_out: those that are asked again after the training.
    """

    learnt: Sequence[Example]
    held_out: Sequence[Example]


def asks(task: Task, example: Example) -> Asking:
    """How an example is asked: as its task asks, a replayed one in words."""
    if _MARK not in example.slices:
        return task.asks(example)
    return replace(task.asking, answer=TEXT, num_beams=1, max_new_tokens=_MAX_TOKENS)


def replay_of(task: Task, asked: PaliGemma, examples: Sequence[Example], folder: Path) -> Replay:
    """Ask a model, which has learnt nothing yet, general prompts about some pictures.

    Answers that lie in the folder are those of the same model, and are not asked for again.

    Raises:
        DataError: it has no answer to any of them.
    """
    ranked = sorted(examples, key=lambda one: (zlib.crc32(one.id.encode()), one.id))
    rows = [
        Example(
            id=f"{_MARK}/{prompt}/{one.id}",
            prefix=prompt,
            pictures=one.pictures,
            references=None,
            slices={_MARK: prompt},
        )
        for one in ranked[:_NUM_PICTURES]
        for prompt in PROMPTS
    ]
    path = folder / REPLAY
    told = _stored(path)
    if told.keys() != {one.id for one in rows}:
        told = dict(zip((one.id for one in rows), _texts(task, asked, rows), strict=True))
        lines = ({"id": one.id, "prefix": one.prefix, "suffix": told[one.id]} for one in rows)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        world().on_first(lambda: write_whole(path, [text]))
    taught = [replace(one, targets=(told[one.id],)) for one in rows if told[one.id].strip()]
    if len(taught) < 2:
        raise DataError(
            f"replay learns a model's own answers to {' and '.join(PROMPTS)}, and this one has "
            "none; leave --replay out"
        )
    held_out = taught[_HELD_OUT - 1 :: _HELD_OUT] or taught[-1:]
    known = {one.id for one in held_out}
    return Replay(learnt=[one for one in taught if one.id not in known], held_out=held_out)


def kept_share(task: Task, asked: PaliGemma, rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Of each prompt, the share of answers that are still those from before, times 100."""
    texts = _texts(task, asked, rows)
    found = []
    for prompt in PROMPTS:
        equal = [
            text.strip() == one.targets[0].strip()
            for one, text in zip(rows, texts, strict=True)
            if one.prefix == prompt
        ]
        if equal:
            after = round(100 * sum(equal) / len(equal), 4)
            found.append({"name": f"{prompt}: answers kept", "before": 100.0, "after": after})
    return found


def _texts(task: Task, asked: PaliGemma, rows: Sequence[Example]) -> list[str]:
    answerer = ModelAnswerer(asked, partial(asks, task))
    texts: list[str] = []
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        texts += [one.text for one in answerer.answer(some, answerer.read(some))]
    return texts


def _stored(path: Path) -> dict[str, str]:
    try:
        return {str(row["id"]): str(row["suffix"]) for _, row in read_rows(path)}
    except (DataError, LookupError):
        return {}


def mixed_in(source: ExampleSource, replayed: Replay, share: float) -> ExampleSource:
    """A source whose batches hold a share of replayed rows, which are shown as they are."""
    weights = source.weights or (1.0,)
    total = sum(weights)
    return replace(
        source,
        examples=[*source.examples, *replayed.learnt],
        weights=(*((1 - share) * one / total for one in weights), share),
        source_of=partial(_place, source.source_of, len(weights)),
        vary=None if source.vary is None else partial(_shown, source.vary),
    )


def _place(place_of: Callable[[Example], int] | None, last: int, example: Example) -> int:
    if _MARK in example.slices:
        return last
    return 0 if place_of is None else place_of(example)


def _shown(vary: Callable[[Example, int], Example], example: Example, visit: int) -> Example:
    return example if _MARK in example.slices else vary(example, visit)
