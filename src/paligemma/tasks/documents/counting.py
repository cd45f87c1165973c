"""Counting: TallyQA, and CountBenchQA for the same model without training.

Source: big_vision configs/proj/paligemma/transfers/tallyqa.py, datasets/{tallyqa,countbenchqa}.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.example import Asking, Example, Picture, Prediction
from paligemma.metrics.answers import tallyqa_measures
from paligemma.metrics.extras import missing_extra
from paligemma.metrics.measure import Measure
from paligemma.processing.image import load_image
from paligemma.tasks.reading.files import FilePicture, find_file, read_json, read_json_lines, value
from paligemma.tasks.reading.prefixes import answer_prefix
from paligemma.tasks.reading.rows import list_rows, of_split
from paligemma.tasks.task import NeededFile, PublishedKey, Task

logger = logging.getLogger(__name__)

TALLYQA = "github.com/manoja328/TallyQA_dataset (tallyqa.zip)"
COUNTBENCH = (
    "hub dataset nielsr/countbench (one parquet file), or the same rows as countbench.jsonl"
)
QUESTIONS_FILE = "countbench_paired_questions.json"
QUESTIONS = f"big_vision/datasets/countbenchqa/data/{QUESTIONS_FILE}"

_BATCH_ROWS = 32
_PUBLISHED = ("accuracy/simple", "accuracy/complex")


def read_tallyqa(data: Path, split: str) -> Iterator[Example]:
    """TallyQA; only "test" tells simple questions from complex ones."""
    of_split({"test": "", "train": ""}, split, "tallyqa")
    path = find_file(data, f"{split}.json", source=TALLYQA)
    for number, row in list_rows(read_json(path), path):
        where = f"{path}, row {number}"
        answer = str(_count(row.get("answer"), where, "answer"))
        slices = {"source": str(row.get("data_source", "unknown"))}
        if split == "test":
            is_simple = bool(_count(row.get("issimple"), where, "issimple"))
            slices["complexity"] = "simple" if is_simple else "complex"
        yield Example(
            id=f"{value(row, 'image_id', int, where)}/{value(row, 'question_id', int, where)}",
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(FilePicture(path=data / value(row, "image", str, where)),),
            references=answer,
            targets=(answer,),
            slices=slices,
        )


@dataclass(frozen=True, kw_only=True)
class ParquetPicture:
    """The encoded picture in one row of a parquet file, in its column `image`."""

    path: Path
    row_group: int
    row: int

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8[H, W, 3]."""
        encoded = _encoded_pictures(self.path, self.row_group)[self.row]
        if encoded is None:
            raise ImageError(f"{self.path}: row {self.row} of group {self.row_group} has no image")
        return load_image(encoded, max_pixels=max_pixels, upright=False)


def read_countbenchqa(data: Path, split: str) -> Iterator[Example]:
    """CountBenchQA: the pictures of CountBench that are left, each with its question.

    Rows without a picture are left out, and of the parquet file also those whose picture has no
    colours, as the published converter does; how many remain is logged.
    """
    of_split({"all": ""}, split, "countbenchqa")
    tables = sorted([*data.glob("*.parquet"), *data.glob("data/*.parquet")])
    questions = _questions(
        find_file(data, QUESTIONS_FILE, f"data/{QUESTIONS_FILE}", source=QUESTIONS)
    )
    if tables:
        if len(tables) > 1:
            raise DataError(f"CountBench is one parquet file, {data} has {len(tables)}; keep one")
        rows = _parquet_rows(tables[0])
    else:
        path = find_file(data, "countbench.jsonl", "train-*.parquet", source=COUNTBENCH)
        rows = _json_rows(path)
    num_rows = num_used = 0
    for number, (picture, count) in enumerate(rows):
        num_rows += 1
        if number >= len(questions):
            break
        if picture is not None:
            num_used += 1
            yield Example(
                id=str(number),
                prefix=answer_prefix(questions[number]),
                pictures=(picture,),
                references=str(count),
                targets=(str(count),),
                slices={"count": str(count)},
            )
    if num_rows != len(questions):
        raise DataError(
            f"{QUESTIONS_FILE} needs one question a row of CountBench in its order, got "
            f"{len(questions)} questions and {'more' if num_rows > len(questions) else num_rows} "
            "rows"
        )
    logger.info(
        "countbenchqa: %d of %d rows have a usable picture; the published figures rest on all 540",
        num_used,
        num_rows,
    )


def score_tallyqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Accuracy after number words became digits; those of simple and complex questions first."""
    kinds = [one.slices.get("complexity") for one in examples]
    measures = tallyqa_measures(
        [one.text for one in predictions],
        [one.references for one in examples],
        None if None in kinds else [kind == "simple" for kind in kinds],
    )
    return sorted(measures, key=lambda one: one.name not in _PUBLISHED)


def _questions(path: Path) -> list[str]:
    return [
        value(row, "question", str, f"{path}, row {number}")
        for number, row in list_rows(read_json(path), path)
    ]


def _parquet_rows(path: Path) -> Iterator[tuple[Picture | None, int]]:
    file = _parquet(path)
    missing = {"image", "number"} - set(file.schema_arrow.names)
    if missing:
        raise DataError(
            f"{path} must have the columns image and number, it lacks {', '.join(sorted(missing))}"
        )
    for group in range(file.num_row_groups):
        row = 0
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=["image", "number"])
        for batch in batches:
            for record in batch.to_pylist():
                where = f"{path}: row {row} of group {group}"
                count = _count(record["number"], where, "number")
                has_colours = _has_colours((record["image"] or {}).get("bytes"))
                picture = ParquetPicture(path=path, row_group=group, row=row)
                yield (picture if has_colours else None), count
                row += 1


def _json_rows(path: Path) -> Iterator[tuple[Picture | None, int]]:
    """`image` is a file beside the list, or null."""
    for number, row in read_json_lines(path):
        where = f"{path}, row {number}"
        image = None if row.get("image") is None else value(row, "image", str, where)
        count = _count(row.get("number"), where, "number")
        yield (None if image is None else FilePicture(path=path.parent / image)), count


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", f"reading {path.name}") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(
            f"{path} is no parquet file ({str(error)[:200]}); download it again"
        ) from error


# A table of a few hundred pictures is one or two groups of tens of megabytes; rows come in order.
@lru_cache(maxsize=1)
def _encoded_pictures(path: Path, row_group: int) -> list[bytes | None]:
    column = _parquet(path).read_row_group(row_group, columns=["image"]).column("image")
    return [(one or {}).get("bytes") for one in column.to_pylist()]


def _has_colours(encoded: bytes | None) -> bool:
    """Whether there is a picture with more than one channel; the header is enough to tell."""
    from PIL import Image

    if not encoded:
        return False
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return len(image.getbands()) > 1
    except (OSError, ValueError, Image.DecompressionBombError):
        return True  # kept, and counted as unreadable when it is asked about


def _count(number: Any, where: str, name: str) -> int:
    """A whole number, also as text."""
    if isinstance(number, str) and number.strip().isdecimal():
        number = int(number)
    if not isinstance(number, int) or number < 0:  # True and False are 1 and 0
        raise DataError(f"{where}: {name} must be a whole number, got {number!r:.80}")
    return int(number)


_ASKING = Asking(text_len=32, max_new_tokens=32)

TASKS: tuple[Task, ...] = (
    Task(
        name="tallyqa",
        title="TallyQA",
        family="documents",
        splits=("test", "train"),
        headline="accuracy/simple",
        asking=_ASKING,
        files=(
            NeededFile(
                path="{split}.json",
                source=TALLYQA,
                fields="image, image_id, question, question_id, answer, data_source, issimple",
            ),
            NeededFile(
                path="VG_100K/, VG_100K_2/",
                source="Visual Genome; with COCO's train2014/ and val2014/ for the train split",
            ),
        ),
        read=read_tallyqa,
        score=score_tallyqa,
        published=tuple(
            PublishedKey(
                measure=f"accuracy/{kind}",
                task="TallyQA",
                split=split,
                metric="accuracy",
                our_split="test",
            )
            for kind in ("simple", "complex")
            for split in (kind, f"test_{kind}")
        ),
        traps=(
            "Simple and complex questions are two figures; their mixture is not published.",
            "Number words up to twenty count as digits, on both sides.",
        ),
        transfer="tallyqa",
    ),
    Task(
        name="countbenchqa",
        title="CountBenchQA",
        family="documents",
        splits=("all",),
        headline="accuracy",
        asking=_ASKING,
        files=(
            NeededFile(
                path="train-*.parquet or countbench.jsonl",
                source=COUNTBENCH,
                fields="image, number",
            ),
            NeededFile(path=QUESTIONS_FILE, source=QUESTIONS, fields="question, one a row"),
        ),
        read=read_countbenchqa,
        score=score_tallyqa,
        published=(
            PublishedKey(
                measure="accuracy",
                task="CountBenchQA",
                split="all",
                metric="accuracy",
                our_split="all",
            ),
        ),
        traps=(
            "Published figures rest on 540 pictures, of which the hub still has 491 and 490 are "
            "usable: say how many you had.",
            "The questions belong to the rows of the parquet file by their order.",
        ),
        transfer="tallyqa",
        is_zero_shot=True,
    ),
)
