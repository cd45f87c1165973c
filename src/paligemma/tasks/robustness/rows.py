"""What a model trained on VQAv2 is asked without further training: POPE, MMVP, Objaverse.

Source: arXiv:2407.07726 table 1 and appendix G; tsb0601/MMVP;
big_vision configs/proj/paligemma/transfers/pope.py.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.metrics.yes_no import (
    MMVP_CORRECTED_ROWS,
    OptionRule,
    mmvp_is_right,
    mmvp_measures,
    mmvp_options,
    pope_measures,
)
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.reading.files import (
    FilePicture,
    find_file,
    read_csv,
    read_json,
    read_json_lines,
    value,
)
from paligemma.tasks.reading.prefixes import answer_prefix
from paligemma.tasks.reading.rows import of_split
from paligemma.tasks.robustness.objaverse import score_objaverse
from paligemma.tasks.task import NeededFile, PublishedKey, Task

logger = logging.getLogger(__name__)

POPE = "github.com/AoiDragon/POPE (output/coco)"
COCO_VAL = "COCO val2014 images"
MMVP = "hub dataset MMVP/MMVP"
OBJAVERSE = "Objaverse-LVIS"

POPE_FILES = ("random", "popular", "adversarial")

# Right options of the rows that corrected copies change, each pair the other way round.
_CORRECTED = dict(zip(MMVP_CORRECTED_ROWS, ("(b)", "(a)", "(b)", "(a)"), strict=True))

NUM_VIEWS = 8
OBJAVERSE_QUESTIONS = (
    "What is this?",
    "What type of object is this?",
    "What is in the image?",
    "Describe the object in the image",
)
_VIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_pope(data: Path, split: str) -> Iterator[Example]:
    """POPE on COCO: its three files, one after the other."""
    of_split({"test": ""}, split, "pope")
    images = find_file(data, "val2014", "images/val2014", source=COCO_VAL)
    for kind in POPE_FILES:
        name = f"coco_pope_{kind}.json"
        names = (name, f"output/coco/{name}", f"pope/coco_{kind}.json", f"coco_{kind}.json")
        path = find_file(data, *names, source=POPE)
        for number, row in read_json_lines(path):
            where = f"{path}, row {number}"
            label = value(row, "label", str, where)
            yield Example(
                id=f"{kind}/{value(row, 'question_id', int, where)}",
                prefix=answer_prefix(value(row, "text", str, where)),
                pictures=(FilePicture(path=images / value(row, "image", str, where)),),
                references=label,
                targets=(label,),
                slices={"file": kind},
            )


def read_mmvp(data: Path, split: str) -> Iterator[Example]:
    """MMVP: questions 1 and 2 are about a pair of look-alike pictures, 3 and 4, and so on.

    Args:
        split: "all" takes the answers of the file, "corrected" swaps those of two pairs that
            are the wrong way round in it.
    """
    of_split({"all": "", "corrected": ""}, split, "mmvp")
    path = find_file(data, "Questions.csv", "Questions/Questions.csv", source=MMVP)
    images = find_file(data, "MMVP Images", source=MMVP)
    for number, row in read_csv(path, ("Index", "Question", "Options", "Correct Answer")):
        where = f"{path}, row {number}"
        if not (text := row["Index"].strip()).isdecimal() or int(text) < 1:
            raise DataError(f"{where}: Index must count from 1, got {text!r:.80}")
        index = int(text)
        correct = _CORRECTED.get(index) if split == "corrected" else None
        correct = correct or row["Correct Answer"].strip()
        option = mmvp_options(row["Options"]).get(correct.strip("()").lower())
        if option is None:
            raise DataError(f"{where}: Correct Answer must be an option, got {correct!r:.80}")
        yield Example(
            id=str(index),
            prefix=answer_prefix(row["Question"].strip()),
            pictures=(FilePicture(path=images / f"{index}.jpg"),),
            references={"options": row["Options"], "correct": correct},
            targets=(option,),
            unit=f"pair {(index + 1) // 2}",
        )


def read_objaverse(data: Path, split: str) -> Iterator[Example]:
    """Objaverse-LVIS: eight views of an object, each asked four questions.

    Objects without views are left out, and counted in the log.
    """
    of_split({"all": ""}, split, "objaverse")
    path = find_file(data, "lvis-annotations.json", source=OBJAVERSE)
    folder = find_file(data, "views", source="renderings of the objects, views/{uid}/*.png")
    categories = read_json(path)
    if not isinstance(categories, dict):
        raise DataError(f"{path} must hold category -> uids, got {type(categories).__name__}")
    num_objects = num_used = 0
    for category in categories:
        for uid in value(categories, category, list, str(path)):
            num_objects += 1
            views = _views(folder / str(uid))
            num_used += bool(views)
            asked = itertools.product(enumerate(views), enumerate(OBJAVERSE_QUESTIONS))
            for (view, file), (number, question) in asked:
                yield Example(
                    id=f"{uid}/{view}/{number}",
                    prefix=answer_prefix(question),
                    pictures=(FilePicture(path=file),),
                    references={
                        "category": category.replace("_", " "),
                        "embeddings": str(data / "embeddings.npz"),
                    },
                    slices={"question": question},
                    unit=str(uid),
                )
    if not num_used:
        raise DataError(
            f"objaverse needs renderings of its objects, {folder} has none of {num_objects}; "
            "render each object into views/{uid}/0.png to 7.png"
        )
    log = logger.warning if num_used < num_objects else logger.info
    log("objaverse: %d of %d objects have views", num_used, num_objects)


def score_pope(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """The mean of the three accuracies first; then the other figures of `pope_measures`."""
    return pope_measures(
        [one.text for one in predictions],
        [one.references for one in examples],
        [one.slices["file"] for one in examples],
    )


def score_mmvp(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, options: OptionRule = "text"
) -> list[Measure]:
    """Paired accuracy, where an answer is right that names the right option by the rule.

    Pairs of which a sample holds one question only are left out.

    Raises:
        DataError: no whole pair.
    """
    pairs = [one.unit or one.id for one in examples]
    num = Counter(pairs)
    whole = [index for index, pair in enumerate(pairs) if num[pair] == 2]
    if not whole:
        raise DataError(
            f"MMVP is scored by pairs of questions, got {len(examples)} questions of as many "
            "pairs; answer more of them"
        )
    measures = mmvp_measures(
        [
            mmvp_is_right(
                predictions[index].text,
                examples[index].references["options"],
                examples[index].references["correct"],
                rule=options,
            )
            for index in whole
        ],
        [pairs[index] for index in whole],
    )
    if len(whole) == len(examples):
        return measures
    logger.warning("mmvp: %d questions lack their pair, left out", len(examples) - len(whole))
    return [_placed(one, whole, len(examples)) for one in measures]


def _placed(measure: Measure, rows: Sequence[int], num: int) -> Measure:
    """A figure over some rows as one over all: the others weigh nothing."""
    index = np.asarray(rows)
    per_example = np.full(num, np.nan)
    if measure.per_example is not None:
        per_example[index] = measure.per_example
    return replace(
        measure,
        statistic=lambda weights: measure.statistic(weights[index]),
        num=num,
        num_used=len(rows),
        per_example=per_example,
    )


def _views(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if file.suffix.lower() in _VIEW_SUFFIXES)
    return sorted(files, key=lambda file: file.name)[:NUM_VIEWS]


def _keys(measure: str, metric: str, *places: tuple[str, str, str]) -> tuple[PublishedKey, ...]:
    return tuple(
        PublishedKey(measure=measure, task=task, split=split, metric=metric, our_split=ours)
        for task, split, ours in places
    )


TASKS: tuple[Task, ...] = (
    Task(
        name="pope",
        title="POPE",
        family="robustness",
        splits=("test",),
        headline="accuracy",
        asking=Asking(text_len=48, max_new_tokens=48, resize_method=BILINEAR),
        files=(
            NeededFile(
                path="coco_pope_{random|popular|adversarial}.json",
                source=POPE,
                fields="JSON lines: question_id, image, text, label",
            ),
            NeededFile(path="val2014/", source=COCO_VAL),
        ),
        read=read_pope,
        score=score_pope,
        published=(
            *_keys("accuracy", "accuracy", ("POPE", "mean", "test")),
            *(
                key
                for kind in POPE_FILES
                for key in _keys(f"accuracy/{kind}", "accuracy", ("POPE", kind, "test"))
            ),
        ),
        traps=(
            "The released configuration asks the bare question; reported figures come from "
            "`answer en {question}`. `--prompt '{question}'` asks the former.",
            "The official script reads free text; the published accuracy wants exactly yes or no.",
        ),
        transfer="vqav2",
        is_zero_shot=True,
    ),
    Task(
        name="mmvp",
        title="MMVP",
        family="robustness",
        splits=("all", "corrected"),
        headline="paired_accuracy",
        asking=Asking(text_len=32, max_new_tokens=32),
        files=(
            NeededFile(
                path="Questions.csv", source=MMVP, fields="Index, Question, Options, Correct Answer"
            ),
            NeededFile(path="MMVP Images/{1..300}.jpg", source=MMVP),
        ),
        read=read_mmvp,
        score=score_mmvp,
        published=_keys("paired_accuracy", "paired accuracy", ("MMVP", "all", "all")),
        traps=(
            "A pair counts only if both of its questions are right.",
            "Rows 99, 100, 279 and 280 are wrong in the file; say whether you score `corrected`.",
            "How free text was matched with the options is not published; ours wants the text of "
            "the right option, case and outer spaces aside. `--rule options=letter` wants its "
            "letter, `options=either` one of them.",
        ),
        rules={"options": get_args(OptionRule)},
        transfer="vqav2",
        is_zero_shot=True,
    ),
    Task(
        name="objaverse",
        title="Objaverse multiview",
        family="robustness",
        splits=("all",),
        headline="cosine",
        asking=Asking(text_len=32, max_new_tokens=32),
        files=(
            NeededFile(path="lvis-annotations.json", source=OBJAVERSE, fields="category -> uids"),
            NeededFile(path="views/{uid}/*.png", source="eight renderings of each object"),
            NeededFile(
                path="embeddings.npz",
                source="Universal Sentence Encoder v4 over the texts that scoring asks for",
                fields="texts, vectors",
            ),
        ),
        read=read_objaverse,
        score=score_objaverse,
        published=_keys(
            "cosine",
            "cosine similarity (USEv4)",
            ("Objaverse multiview", "all", "all"),
            ("Objaverse Multiview", "all", "all"),
        ),
        traps=(
            "The published figures pool five sampled answers a question; ours pools the greedy "
            "ones of eight views and four questions.",
            "The weighting of answers is not fully published; ours is the sum of probabilities of "
            "equal answers, others are reported beside it.",
            "Underscores of a category become spaces before it is embedded.",
        ),
        transfer="vqav2",
        is_zero_shot=True,
    ),
)
