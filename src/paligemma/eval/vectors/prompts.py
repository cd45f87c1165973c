"""Vectors of prompts: what a benchmark's question looks like to the model, and its answer."""

from collections.abc import Callable, Mapping
from typing import Any

from paligemma.errors import DataError
from paligemma.eval.vectors import Check, Params
from paligemma.metrics.answers import truth_word
from paligemma.outputs.boxes import encode_boxes, format_loc, format_seg
from paligemma.processing.sentencepiece_model import SEPARATOR_PIECE
from paligemma.tasks.answers.scienceqa import scienceqa_prefix, scienceqa_suffix
from paligemma.tasks.reading.prefixes import (
    answer_prefix,
    bare_prefix,
    caption_prefix,
    choices_prefix,
)

# A row of a benchmark -> prefix and suffix.
_Row = Mapping[str, Any]
Wording = Callable[[_Row], tuple[str, str]]


def _answer(row: _Row) -> tuple[str, str]:
    return answer_prefix(row["question"]), row["answers"][0]


def _lower_answer(row: _Row) -> tuple[str, str]:
    return answer_prefix(row["question"]), row["answers"][0].lower()


def _bare(row: _Row) -> tuple[str, str]:
    if "query" in row:  # ChartQA's own names
        return bare_prefix(row["query"]), row["label"]
    return bare_prefix(row["question"]), row["answers"][0]


def _choices(row: _Row) -> tuple[str, str]:
    if "choices" in row:  # A-OKVQA's own names
        index = row["idx"] if "idx" in row else row["correct_choice_idx"]
        return choices_prefix(row["question"], row["choices"]), row["choices"][index]
    return choices_prefix(row["question"], row["possible_answers"]), row["answer"]


def _science(row: _Row) -> tuple[str, str]:
    prefix = scienceqa_prefix(row["question"], row["hint"], row["choices"])
    return prefix, scienceqa_suffix(row["answer"])


def _caption(row: _Row) -> tuple[str, str]:
    # A row that tells only the language stands for any caption.
    return caption_prefix(row.get("language", "en")), row.get("caption", "(one caption)")


def _expression(row: _Row) -> tuple[str, str]:
    box = format_loc(encode_boxes(row["box_ymin_xmin_ymax_xmax"]))
    return bare_prefix(row["sentence"]), box + format_seg(row["seg"])


def _statement(row: _Row) -> tuple[str, str]:
    if "caption" in row:  # own names of VSR and MaRVL, with 1 and 0 or true and false
        return answer_prefix(row["caption"]), truth_word(row["label"])
    return answer_prefix(row["sentence"]), str(row["label"])


_BENCHMARKS: dict[Wording, str] = {
    _answer: "vqav2 okvqa aokvqada gqa xgqa textvqa ocrvqa tallyqa countbenchqa vizwiz"
    " msrvttqa msvdqa activitynetqa pope mmvp objaverse",
    _lower_answer: "infovqa stvqa rsvqa rsvqalr rsvqahr",
    _bare: "docvqa chartqa",
    _choices: "ai2d aokvqamc",
    _science: "scienceqa",
    _caption: "coco cococaptions nocaps coco35l xm3600 textcaps scicap screen2words widgetcap"
    " msrvttcap activitynetcap vatex docci",
    _expression: "refcoco refcoco+ refcocog",
    _statement: "nlvr2 marvl vsr",
}
_WORDING = {name: wording for wording, names in _BENCHMARKS.items() for name in names.split()}


def _prompt(predictions: Any, references: Any, params: Params) -> dict[str, str]:
    task = params["task"]
    wording = _WORDING.get(task.lower().replace("_", "").replace("-", ""))
    if wording is None:
        raise DataError(f"no wording of {task!r} is known; one of {', '.join(_WORDING)}")
    prefix, suffix = wording(predictions)
    return {"prefix": prefix, "separator": SEPARATOR_PIECE, "suffix": suffix}


CHECKS: dict[str, Check] = {"prompt_format": _prompt}
