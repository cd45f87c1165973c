"""A few rows learnt by heart: whether data, training, saving, merging and loading fit together."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paligemma.example import Example
from paligemma.jobs.model_answerer import ModelAnswerer
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.tasks.task import Task
from paligemma.tuning.merging import merge_adapter
from paligemma.tuning.watching import is_exact

_MAX_SHOWN = 200  # characters


def chosen_rows(examples: Sequence[Example], number: int) -> list[Example]:
    """Some rows, the same ones on every machine, each with its first answer alone."""
    ranked = sorted(examples, key=lambda one: (zlib.crc32(one.id.encode()), one.id))
    return [replace(one, targets=one.targets[:1]) for one in ranked[:number]]


def inexact_answers(
    task: Task, model: str, result: Path, rows: Sequence[Example], *, is_adapter: bool
) -> list[str]:
    """Ask what was kept, loaded anew and merged, the rows that it was taught.

    Args:
        model: what the run began with.
        result: folder of the adapter or of the model.
        is_adapter: whether it is an adapter, which is asked beside its model and merged into it.

    Returns:
        A sentence for each answer that is not what was taught.
    """
    if not is_adapter:
        return _asked(task, PaliGemma.from_pretrained(result), rows, "the saved model")
    beside = PaliGemma.from_pretrained(model, adapter=result)
    found = _asked(task, beside, rows, "the model with the saved adapter")
    del beside
    with tempfile.TemporaryDirectory(dir=result.parent, prefix=".merged.") as folder:
        merged = Path(folder) / "model"
        merge_adapter(result, model, merged)
        return found or _asked(task, PaliGemma.from_pretrained(merged), rows, "the merged model")


def _asked(task: Task, pg: PaliGemma, rows: Sequence[Example], who: str) -> list[str]:
    answerer = ModelAnswerer(pg, task.asks)
    answers = answerer.answer(rows, answerer.read(rows))
    return [
        f"a row that is learnt by heart must be answered to the letter, {who} answers {one.id} "
        f"({_short(one.prefix)}) with {_short(answer.text)} in the place of "
        f"{_short(one.targets[0])}{_cut(task, one, pg)}; train longer (--steps), try another --lr, "
        "more --parts or a larger --rank"
        for one, answer in zip(rows, answers, strict=True)
        if not is_exact(one, answer)
    ]


def _cut(task: Task, one: Example, pg: PaliGemma) -> str:
    """A word on answers that are longer than the task lets a model write."""
    needed = len(pg.processor.tokenizer.encode(one.targets[0])) + 1
    bound = task.asks(one).max_new_tokens
    return f" (which has {needed} tokens; at most {bound} are written)" if needed > bound else ""


def _short(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
