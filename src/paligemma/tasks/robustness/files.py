"""Reads POPE, MMVP and Objaverse, which a model trained on VQAv2 answers zero-shot.

Source: arXiv:2407.07726 table 1 and appendix G; tsb0601/MMVP;
big_vision configs/proj/paligemma/transfers/pope.py.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.metrics.yes_no import MMVP_CORRECTED_ROWS, mmvp_options
from paligemma.tasks.reading.examples import SourceRow, example_of
from paligemma.tasks.reading.file_rows import (
    FileRow,
    read_csv,
    read_json_lines,
    read_object,
)
from paligemma.tasks.reading.files import find_file, relative_name
from paligemma.tasks.reading.pictures import FilePicture, picture_in
from paligemma.tasks.reading.prefixes import answer_prefix

logger = logging.getLogger(__name__)

POPE = "github.com/AoiDragon/POPE (output/coco)"
COCO_VAL = "COCO val2014 images"
MMVP = "hub dataset MMVP/MMVP"
OBJAVERSE = "Objaverse-LVIS"

POPE_FILES = ("random", "popular", "adversarial")

# Right options of the rows that corrected copies change; each pair is swapped.
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
    """Read POPE on COCO: its three files, one after the other."""
    return pope_examples(_pope_rows(data), data, split)


def pope_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of rows of all three files."""
    for row, picture in rows:
        kind = row.text("category")
        if kind not in POPE_FILES:
            raise row.error(f"category must be one of {', '.join(POPE_FILES)}, got {kind!r:.80}")
        yield example_of(
            f"{kind}/{row.integer('question_id')}",
            answer_prefix(row.text("text")),
            picture=picture,
            answers=row.text("label"),
            slices={"file": kind},
        )


def _pope_rows(data: Path) -> Iterator[SourceRow]:
    images = find_file(data, "val2014", "images/val2014", source=COCO_VAL)
    for kind in POPE_FILES:
        name = f"coco_pope_{kind}.json"
        names = (name, f"output/coco/{name}", f"pope/coco_{kind}.json", f"coco_{kind}.json")
        for row in read_json_lines(find_file(data, *names, source=POPE)):
            whole = FileRow({**row.fields, "category": kind}, row.where, row.number)
            yield whole, picture_in(images, row.text("image"))


def read_mmvp(data: Path, split: str) -> Iterator[Example]:
    """Read MMVP: questions 1 and 2 are about a pair of look-alike pictures, 3 and 4, and so on.

    Args:
        data: the data folder.
        split: "all" takes the answers of the file, "corrected" swaps those of two pairs that
            the file has the wrong way round.
    """
    path = find_file(data, "Questions.csv", "Questions/Questions.csv", source=MMVP)
    images = find_file(data, "MMVP Images", source=MMVP)
    rows = read_csv(path, ("Question", "Options", "Correct Answer"))
    named = ((row, picture_in(images, f"{_mmvp_index(row)}.jpg")) for row in rows)
    return mmvp_examples(named, data, split)


def mmvp_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of all rows, with a warning where a copy is corrected already."""
    num_corrected = 0
    for row, picture in rows:
        index, options = _mmvp_index(row), row.text("Options")
        stated = row.text("Correct Answer").strip()
        num_corrected += stated == _CORRECTED.get(index)
        correct = _CORRECTED.get(index) if split == "corrected" else None
        correct = correct or stated
        option = mmvp_options(options).get(correct.strip("()").lower())
        if option is None:
            raise row.error(f"Correct Answer must be an option, got {correct!r:.80}")
        yield example_of(
            str(index),
            answer_prefix(row.text("Question").strip()),
            picture=picture,
            answers=option,
            references={"options": options, "correct": correct},
            unit=f"pair {(index + 1) // 2}",
        )
    if split == "all" and num_corrected == len(_CORRECTED):
        logger.warning("mmvp: %s is a corrected copy; its figure is that of `corrected`", data)


def _mmvp_index(row: FileRow) -> int:
    # The hub's file spells the heading with a small L; a copy may count by its rows alone.
    name = next((one for one in ("Index", "lndex") if one in row), None)
    text = str(row.number + 1) if name is None else row.identifier(name).strip()
    if not text.isdecimal() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise row.error(f"Index must count from 1, got {text!r:.80}")
    return int(text)


def read_objaverse(data: Path, split: str) -> Iterator[Example]:
    """Read Objaverse-LVIS: eight views of an object with four questions each.

    Objects without views are left out, and counted in the log.
    """
    categories = read_object(find_file(data, "lvis-annotations.json", source=OBJAVERSE))
    folder = find_file(data, "views", source="renderings of the objects, views/{uid}/*.png")
    num_objects = num_used = 0
    for category in categories.fields:
        for uid in categories.value(category, list):
            num_objects += 1
            views = _views(folder / relative_name(str(uid), f"{category}"))
            num_used += bool(views)
            asked = itertools.product(enumerate(views), enumerate(OBJAVERSE_QUESTIONS))
            for (view, file), (number, question) in asked:
                name = category.replace("_", " ")
                yield example_of(
                    f"{uid}/{view}/{number}",
                    answer_prefix(question),
                    picture=FilePicture(path=file),
                    answers=name,
                    references={"category": name, "embeddings": str(data / "embeddings.npz")},
                    targets=(),
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


def _views(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if file.suffix.lower() in _VIEW_SUFFIXES)
    return sorted(files, key=lambda file: file.name)[:NUM_VIEWS]
