"""ScienceQA: the questions that come with a picture, answered without reasoning.

Source: big_vision configs/proj/paligemma/transfers/science_qa.py, datasets/science_qa.
"""

import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paligemma.example import Example, Prediction
from paligemma.metrics.answers import scienceqa_measures
from paligemma.metrics.measure import Measure
from paligemma.tasks.published import transferred
from paligemma.tasks.reading.examples import SourceRow
from paligemma.tasks.reading.file_rows import FileRow, read_keyed
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.parquet import ParquetPicture
from paligemma.tasks.reading.pictures import picture_in
from paligemma.tasks.scoring import texts_of
from paligemma.tasks.task import Task, files_from, published_keys

SCIENCEQA = "scienceqa.github.io (problems.json and the image archives)"
_SPLITS = ("test", "val", "train")


def scienceqa_prefix(question: str, hint: str, choices: Sequence[str]) -> str:
    """Write question, context ("N/A" without a hint) and lettered options, each on a line."""
    options = ", ".join(f"({_letter(k)}) {choice}" for k, choice in enumerate(choices))
    return f"Question: {question}\nContext: {hint or 'N/A'}\nOptions: {options}\nAnswer:"


def scienceqa_suffix(index: int) -> str:
    """Return `The answer is B.` for index 1."""
    return f"The answer is {_letter(index)}."


def read_scienceqa(data: Path, split: str) -> Iterator[Example]:
    """Read ScienceQA with options in the order of the file; training shuffles them."""
    return scienceqa_examples(_official_rows(data, split), data, split)


def scienceqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of the rows with a picture; a row without an id has its number."""
    for row, picture in rows:
        is_copied = isinstance(picture, ParquetPicture)
        if isinstance(picture, ParquetPicture) and not picture.is_there():
            continue
        choices, index = row.texts("choices"), row.integer("answer")
        if not (0 <= index < len(choices) <= len(string.ascii_uppercase)):
            raise row.error(
                f"answer must be the index of one of at most 26 choices, got {index} of "
                f"{len(choices)}"
            )
        question, hint = (
            row.text("question"),
            "" if is_copied and "hint" not in row else row.text("hint"),
        )
        yield Example(
            id=row.text("id") if "id" in row else str(row.number),
            prefix=scienceqa_prefix(question, hint, choices),
            pictures=(picture,),
            references={
                "answer": scienceqa_suffix(index),
                "question": question,
                "hint": hint,
                "choices": choices,
                "index": index,
            },
            targets=(scienceqa_suffix(index),),
            slices={
                name: str(row.fields[name])
                for name in ("subject", "topic", "grade")
                if row.fields.get(name)
            },
        )


def _official_rows(data: Path, split: str) -> Iterator[SourceRow]:
    path = find_file(data, "problems.json", "scienceqa/problems.json", source=SCIENCEQA)
    near = path.parent.relative_to(data)
    folders = (str(near / split), str(near / "images" / split))
    images: Path | None = None
    for key, row in read_keyed(path):
        if row.text("split") != split or not row.fields.get("image"):
            continue
        images = images or find_file(data, *folders, source=SCIENCEQA)
        picture = picture_in(images, f"{key}/{row.text('image')}")
        yield FileRow({**row.fields, "id": key}, row.where), picture


def shuffle_options(example: Example, rng: np.random.Generator) -> Example:
    """Put the options of a question in another order, which training draws anew each visit."""
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
    """Compute the share of right letters; an answer other than `The answer is X.` is wrong."""
    references = [one.references["answer"] for one in examples]
    return scienceqa_measures(texts_of(predictions), references)


def _letter(index: int) -> str:
    return string.ascii_uppercase[index]


TASKS: tuple[Task, ...] = (
    Task(
        **transferred("science_qa"),
        name="scienceqa",
        title="ScienceQA (questions with a picture)",
        family="answers",
        splits=_SPLITS,
        headline="accuracy",
        files=files_from(
            SCIENCEQA,
            ("problems.json", "id -> split, image, question, hint, choices, answer"),
            "{split}/{id}/image.png or images/{split}/{id}/",
        ),
        reader=read_scienceqa,
        from_rows=scienceqa_examples,
        redraw=shuffle_options,
        score=score_scienceqa,
        published=published_keys(
            "accuracy",
            "accuracy",
            ("ScienceQA", "test", "test"),
            ("ScienceQA (img subset, no CoT)", "test", "test"),
        ),
        traps=(
            "Only questions with a picture count.",
            "Options are shuffled in training only; evaluation keeps the order of the file.",
            "The answer must begin with `The answer is X.`, without a space before it.",
        ),
    ),
)
