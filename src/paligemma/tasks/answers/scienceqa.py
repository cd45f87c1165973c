"""ScienceQA: the questions that come with a picture, answered without reasoning.

Source: big_vision configs/proj/paligemma/transfers/science_qa.py, datasets/science_qa.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.answers import scienceqa_measures
from paligemma.metrics.measure import Measure
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.reading.files import FilePicture, find_file, read_json, value, values
from paligemma.tasks.reading.rows import keyed_rows, of_split
from paligemma.tasks.task import NeededFile, PublishedKey, Task

SCIENCEQA = "scienceqa.github.io (problems.json and the image archives)"


def scienceqa_prefix(question: str, hint: str, choices: Sequence[str]) -> str:
    """Question, context ("N/A" without a hint) and lettered options, each on a line."""
    options = ", ".join(f"({_letter(k)}) {choice}" for k, choice in enumerate(choices))
    return f"Question: {question}\nContext: {hint or 'N/A'}\nOptions: {options}\nAnswer:"


def scienceqa_suffix(index: int) -> str:
    """`The answer is B.`"""
    return f"The answer is {_letter(index)}."


def read_scienceqa(data: Path, split: str) -> Iterator[Example]:
    """ScienceQA; options stay in the order of the file, see `shuffle_options` for training."""
    of_split({"test": "", "val": "", "train": ""}, split, "scienceqa")
    path = find_file(data, "problems.json", "scienceqa/problems.json", source=SCIENCEQA)
    near = path.parent.relative_to(data)
    folders = (str(near / split), str(near / "images" / split))
    images: Path | None = None
    for key, row in keyed_rows(read_json(path), path):
        where = f"{path}, {key}"
        if value(row, "split", str, where) != split or not row.get("image"):
            continue
        images = images or find_file(data, *folders, source=SCIENCEQA)
        choices = values(row, "choices", str, where)
        index = value(row, "answer", int, where)
        if not (0 <= index < len(choices) <= len(string.ascii_uppercase)):
            raise DataError(
                f"{where}: answer must be the index of one of at most 26 choices, got {index} of "
                f"{len(choices)}"
            )
        question, hint = value(row, "question", str, where), value(row, "hint", str, where)
        yield Example(
            id=key,
            prefix=scienceqa_prefix(question, hint, choices),
            pictures=(FilePicture(path=images / key / value(row, "image", str, where)),),
            references={
                "answer": scienceqa_suffix(index),
                "question": question,
                "hint": hint,
                "choices": choices,
                "index": index,
            },
            targets=(scienceqa_suffix(index),),
            slices={
                name: str(row[name]) for name in ("subject", "topic", "grade") if row.get(name)
            },
        )


def shuffle_options(example: Example, rng: np.random.Generator) -> Example:
    """The same question with its options in another order, as training draws one a visit."""
    asked = example.references
    order = rng.permutation(len(asked["choices"])).tolist()
    choices = [asked["choices"][k] for k in order]
    index = order.index(asked["index"])
    suffix = scienceqa_suffix(index)
    return replace(
        example,
        prefix=scienceqa_prefix(asked["question"], asked["hint"], choices),
        references={**asked, "choices": choices, "index": index, "answer": suffix},
        targets=(suffix,),
    )


def score_scienceqa(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Share of right letters; an answer that is not `The answer is X.` is wrong."""
    references = [one.references["answer"] for one in examples]
    return scienceqa_measures([one.text for one in predictions], references)


def _letter(index: int) -> str:
    return string.ascii_uppercase[index]


TASKS: tuple[Task, ...] = (
    Task(
        name="scienceqa",
        title="ScienceQA (questions with a picture)",
        family="answers",
        splits=("test", "val", "train"),
        headline="accuracy",
        asking=Asking(text_len=512, max_new_tokens=512, resize_method=BILINEAR),
        files=(
            NeededFile(
                path="problems.json",
                source=SCIENCEQA,
                fields="id -> split, image, question, hint, choices, answer",
            ),
            NeededFile(path="{split}/{id}/image.png or images/{split}/{id}/", source=SCIENCEQA),
        ),
        read=read_scienceqa,
        score=score_scienceqa,
        published=tuple(
            PublishedKey(
                measure="accuracy", task=task, split="test", metric="accuracy", our_split="test"
            )
            for task in ("ScienceQA", "ScienceQA (img subset, no CoT)")
        ),
        traps=(
            "Only questions with a picture count.",
            "Options are shuffled in training only; evaluation keeps the order of the file.",
            "The answer must begin with `The answer is X.`; a space before it is a failure.",
        ),
        transfer="science_qa",
    ),
)
