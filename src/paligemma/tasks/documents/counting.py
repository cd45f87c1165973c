"""Reads counting questions: TallyQA, and CountBenchQA for the same model without training.

Source: big_vision configs/proj/paligemma/transfers/tallyqa.py, datasets/{tallyqa,countbenchqa}.
"""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example, Picture
from paligemma.processing.image import open_heading
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import FileRow, read_json_lines, read_list, whole_number
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.finding import plain_name
from paligemma.tasks.reading.parquet import ParquetPicture, open_parquet, parquet_rows
from paligemma.tasks.reading.pictures import FilePicture, picture_in
from paligemma.tasks.reading.prefixes import answer_prefix

logger = logging.getLogger(__name__)

TALLYQA = "github.com/manoja328/TallyQA_dataset (tallyqa.zip)"
COUNTBENCH = (
    "hub dataset nielsr/countbench (one parquet file), or the same rows as countbench.jsonl"
)
QUESTIONS_FILE = "countbench_paired_questions.json"
QUESTIONS = f"big_vision/datasets/countbenchqa/data/{QUESTIONS_FILE}"


def read_tallyqa(data: Path, split: str) -> Iterator[Example]:
    """Read TallyQA; only "test" marks simple and complex questions."""
    for row in read_list(find_file(data, f"{split}.json", source=TALLYQA)):
        slices = {"source": str(row.fields.get("data_source", "unknown"))}
        if split == "test":
            is_simple = _count(row.fields.get("issimple"), row.where, "issimple")
            slices["complexity"] = "simple" if is_simple else "complex"
        yield example_of(
            f"{row.integer('image_id')}/{row.integer('question_id')}",
            answer_prefix(row.text("question")),
            picture=_tallyqa_picture(data, row.text("image")),
            answers=str(_count(row.fields.get("answer"), row.where, "answer")),
            slices=slices,
        )


def _tallyqa_picture(data: Path, image: str) -> FilePicture:
    """Its folder, such as `train2014`, is where a name starts, so that this may be a link."""
    folder, _, name = image.partition("/")
    is_folder = name and plain_name(folder) is not None
    return picture_in(data / folder, name) if is_folder else picture_in(data, image)


def read_countbenchqa(data: Path, split: str) -> Iterator[Example]:
    """Read CountBenchQA: the pictures of CountBench that are left, each with its question.

    Rows without a picture are left out, and of the parquet file also those whose picture has no
    colours, as the published converter does; how many remain is logged.
    """
    tables = sorted([*data.glob("*.parquet"), *data.glob("data/*.parquet")])
    asked = find_file(data, QUESTIONS_FILE, f"data/{QUESTIONS_FILE}", source=QUESTIONS)
    questions = [row.text("question") for row in read_list(asked)]
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
            yield example_of(
                str(number),
                answer_prefix(questions[number]),
                picture=picture,
                answers=str(count),
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


def countbenchqa_examples(
    rows: Iterator[tuple[FileRow, ParquetPicture]], data: Path, split: str
) -> Iterator[Example]:
    """Make the examples of a copy whose rows hold their questions, of usable pictures alone."""
    for row, picture in rows:
        if _has_colours(picture):
            count = str(_count(row.any("number"), row.where, "number"))
            yield example_of(
                str(row.number),
                answer_prefix(row.text("question")),
                picture=picture,
                answers=count,
                slices={"count": count},
            )


def _parquet_rows(path: Path) -> Iterator[tuple[Picture | None, int]]:
    missing = {"image", "number"} - set(open_parquet(path).schema_arrow.names)
    if missing:
        raise DataError(
            f"{path} must have the columns image and number, it lacks {', '.join(sorted(missing))}"
        )
    for group, place, record in parquet_rows(path, ["number"]):
        count = _count(record["number"], f"{path}: row {place} of group {group}", "number")
        picture = ParquetPicture(path=path, row_group=group, row=place)
        yield (picture if _has_colours(picture) else None), count


def _json_rows(path: Path) -> Iterator[tuple[Picture | None, int]]:
    """Read pairs from JSON lines, where `image` is a file beside the list, or null."""
    for row in read_json_lines(path):
        picture = None
        if row.fields.get("image") is not None:
            picture = picture_in(path.parent, row.text("image"))
        yield picture, _count(row.fields.get("number"), row.where, "number")


def _has_colours(picture: ParquetPicture) -> bool:
    """Whether the header announces a picture with more than one channel."""
    if not picture.is_there():
        return False
    try:
        with open_heading(io.BytesIO(picture.encoded())) as image:
            return len(image.getbands()) > 1
    except Exception:  # damaged headings raise whatever a plugin stumbles over
        return True  # kept; reading it later counts it as unreadable


def _count(number: Any, where: str, name: str) -> int:
    """Read a whole number, also from text."""
    read = whole_number(number.strip()) if isinstance(number, str) else number
    if not isinstance(read, int) or read < 0:  # True and False are 1 and 0
        raise DataError(f"{where}: {name} must be a whole number, got {number!r:.80}")
    return int(read)
