"""Questions about satellite and aerial pictures: RSVQA at low and at high resolution.

Source: big_vision configs/proj/paligemma/transfers/rsvqa_{lr,hr}.py, datasets/rsvqa_{lr,hr}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.answers import rsvqa_bin_answer, rsvqa_measures
from paligemma.metrics.measure import Measure
from paligemma.processing.resize import BILINEAR, BILINEAR_ANTIALIAS
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.files import FilePicture, find_file, value, values
from paligemma.tasks.reading.prefixes import answer_prefix, lower_ascii
from paligemma.tasks.reading.rows import Row, of_split
from paligemma.tasks.task import NeededFile, PublishedKey, Task

RSVQA = "rsvqa.sylvainlobry.com (Zenodo {record})"

# Split -> part of the file names. "_all" keeps the questions that ask for a number.
LR_SPLITS = {"test": "test", "val": "val", "train": "train"}
HR_SPLITS = {"test": "test", "test2": "test_phili", "val": "val", "train": "train"}
NUMERIC = {"lr": ("count",), "hr": ("count", "area")}
_SUFFIX = "_all"


def read_rsvqa(data: Path, split: str, *, variant: Literal["lr", "hr"]) -> Iterator[Example]:
    """RSVQA of either resolution.

    Args:
        split: of LR_SPLITS or HR_SPLITS, without the questions for numbers; with "_all" after it,
            all questions, counts (low resolution) and areas (high) as ranges.
        variant: "lr" or "hr".
    """
    names = LR_SPLITS if variant == "lr" else HR_SPLITS
    known = {**names, **{f"{name}{_SUFFIX}": part for name, part in names.items()}}
    part = of_split(known, split, f"rsvqa-{variant}")
    stem, folder, suffix = _LAYOUT[variant]
    source = _SOURCE[variant]
    asked = find_file(data, f"{stem}_{part}_questions.json", source=source)
    told = find_file(data, f"{stem}_{part}_answers.json", source=source)
    images = find_file(data, folder, source=source)
    answers: dict[int, tuple[Any, Any]] = {}
    for number, (_, row) in enumerate(stream_lists(told, ["answers"])):
        key = value(row, "id", int, f"{told}, answer {number}")
        answers[key] = row.get("question_id"), row.get("answer")
    for number, (_, row) in enumerate(stream_lists(asked, ["questions"])):
        where = f"{asked}, question {number}"
        if not value(row, "active", bool, where):
            continue
        kind = value(row, "type", str, where)
        if kind in NUMERIC[variant] and not split.endswith(_SUFFIX):
            continue
        image = f"{value(row, 'img_id', int, where)}{suffix}"
        told_answer = _answer(row, answers, where)
        answer = lower_ascii(rsvqa_bin_answer(told_answer, kind, resolution=variant))
        yield Example(
            id=str(value(row, "id", int, where)),
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(FilePicture(path=images / image),),
            references=answer,
            targets=(answer,),
            slices={"type": kind},
        )


def score_rsvqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Accuracy of each type of question, and first their unweighted mean."""
    return rsvqa_measures(
        [one.text for one in predictions],
        [one.references for one in examples],
        [one.slices["type"] for one in examples],
    )


def _answer(row: Row, answers: Mapping[int, tuple[Any, Any]], where: str) -> str:
    ids = values(row, "answers_ids", int, where)
    if not ids or ids[0] not in answers:
        raise DataError(f"{where}: answers_ids must name a row of the answers, got {ids!r:.80}")
    (owner, answer), key = answers[ids[0]], value(row, "id", int, where)
    if owner != key:
        raise DataError(f"{where}: answer {ids[0]} belongs to question {owner}, not {key}")
    if not isinstance(answer, str):
        raise DataError(f"{where}: answer {ids[0]} must be text, got {answer!r:.80}")
    return answer


# Variant -> stem of the question files, folder and suffix of the pictures.
_LAYOUT = {
    "lr": ("LR_split", "Images_LR", ".tif"),
    "hr": ("USGS_split", "Data", ".png"),
}
_SOURCE = {"lr": RSVQA.format(record=6344334), "hr": RSVQA.format(record=6344367)}

# Antialiased in training, not in evaluation.
_ASKING = Asking(
    text_len=32,
    max_new_tokens=32,
    resize_method=BILINEAR,
    train_resize_method=BILINEAR_ANTIALIAS,
)
_TRAPS = (
    "The score is the mean over types of question, not over questions.",
    "Published figures leave out the questions for numbers; splits that end in _all keep them.",
    "Pictures are resized without antialiasing here, though with it in training.",
    "Questions that are not active are skipped.",
    "Answers are lower-cased before training, A to Z alone; scoring lowers every letter.",
)


def _files(variant: str, parts: str) -> tuple[NeededFile, ...]:
    stem, folder, suffix = _LAYOUT[variant]
    source = _SOURCE[variant]
    return (
        NeededFile(
            path=f"{stem}_{parts}_questions.json",
            source=source,
            fields="questions[]: id, img_id, type, question, active, answers_ids",
        ),
        NeededFile(
            path=f"{stem}_{parts}_answers.json",
            source=source,
            fields="answers[]: id, question_id, answer, active",
        ),
        NeededFile(path=f"{folder}/{{id}}{suffix}", source=source),
    )


def _keys(split: str, *tasks: str) -> tuple[PublishedKey, ...]:
    return tuple(
        PublishedKey(
            measure="mean_accuracy", task=task, split=split, metric="mean accuracy", our_split=split
        )
        for task in tasks
    )


def _splits(names: dict[str, str]) -> tuple[str, ...]:
    return (*names, *(f"{name}{_SUFFIX}" for name in names))


TASKS: tuple[Task, ...] = (
    Task(
        name="rsvqa-lr",
        title="RSVQA low resolution",
        family="remote-sensing",
        splits=_splits(LR_SPLITS),
        headline="mean_accuracy",
        asking=_ASKING,
        files=_files("lr", "{split}"),
        read=partial(read_rsvqa, variant="lr"),
        score=score_rsvqa,
        published=_keys("test", "RSVQA-lr", "RSVQA-LR (non numeric)"),
        traps=(
            *_TRAPS,
            "The reference evaluator writes two figures under one name here; ours is the mean over "
            "comp, presence and rural_urban.",
        ),
        transfer="rsvqa_lr",
    ),
    Task(
        name="rsvqa-hr",
        title="RSVQA high resolution",
        family="remote-sensing",
        splits=_splits(HR_SPLITS),
        headline="mean_accuracy",
        asking=_ASKING,
        files=_files("hr", "{test|test_phili|val|train}"),
        read=partial(read_rsvqa, variant="hr"),
        score=score_rsvqa,
        published=(
            *_keys("test", "RSVQA-hr", "RSVQA-HR (non numeric)"),
            *_keys("test2", "RSVQA-hr", "RSVQA-HR (non numeric)"),
        ),
        traps=(*_TRAPS, "test2 is the files called test_phili, of another region."),
        transfer="rsvqa_hr",
    ),
)
