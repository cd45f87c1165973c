"""Reads questions about photographs.

Source: the builders vqa, okvqa, aokvqa, gqa, xgqa, textvqa and vizwizvqa in big_vision/datasets.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from paligemma.example import Example
from paligemma.tasks.reading.coco import COCO_IMAGES
from paligemma.tasks.reading.examples import (
    SourceRow,
    example_of,
    printed_texts,
    slices_of,
    texts_in,
)
from paligemma.tasks.reading.file_rows import (
    FileRow,
    read_csv,
    read_keyed,
    read_list,
)
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.languages import XGQA_LANGUAGES, languages_of
from paligemma.tasks.reading.parquet import ParquetPicture
from paligemma.tasks.reading.pictures import FilePicture, picture_in
from paligemma.tasks.reading.prefixes import answer_prefix, choices_prefix

VQA = "visualqa.org/download.html"
OKVQA = "okvqa.allenai.org/download.html"
AOKVQA = "aokvqa.allenai.org (aokvqa_v1p0.tar.gz)"
GQA = "cs.stanford.edu/people/dorarad/gqa (questions1.2.zip, images.zip)"
XGQA = "github.com/adapter-hub/xGQA (annotations/zero_shot)"
TEXTVQA = "textvqa.org/dataset"
OPEN_IMAGES_IDS = "storage.googleapis.com/openimages/2018_04 (train and test image ids)"
VIZWIZ = "vizwiz.org/tasks-and-datasets/vqa"

# The last questions of val, by which PaliGemma 2 reports VQAv2.
MINIVAL_QUESTIONS = 10_240
NUM_CHOICES = 4

_VQA_SPLITS = {
    "minival": ("val2014", "val2014"),
    "minival-shuffled": ("val2014", "val2014"),
    "maxival": ("val2014", "val2014"),
    "val": ("val2014", "val2014"),
    "train": ("train2014", "train2014"),
    "test": ("test2015", "test2015"),
    "test-dev": ("test-dev2015", "test2015"),
}
_TEXTVQA_FOLDERS = {"val": "train_images", "train": "train_images", "test": "test_images"}
_TEXTVQA_ROTATIONS = {
    "train_images": "train-images-boxable-with-rotation.csv",
    "test_images": "test-images-with-rotation.csv",
}


def read_vqav2(data: Path, split: str) -> Iterator[Example]:
    """Read VQAv2, with the ten answers and the answer type as references.

    "minival" holds the last 10,240 questions of val in the order of the file, "maxival" those
    before them, "minival-shuffled" the last in the order in which big_vision's builder stores them;
    "test" and "test-dev" have no answers.
    """
    return vqav2_examples(_vqav2_rows(data, split), data, split)


def vqav2_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split from all rows of its file."""
    if split == "minival-shuffled":
        order = _builder_order
        rows = iter(sorted(rows, key=lambda pair: order(pair[0].identifier("question_id"))))
    if split.startswith("minival"):
        rows = iter(deque(rows, MINIVAL_QUESTIONS))
    elif split == "maxival":
        rows = iter([*rows][:-MINIVAL_QUESTIONS])
    is_answered = not split.startswith("test")
    for row, picture in rows:
        answers = texts_in(row, "answers", "answer") if is_answered else []
        kinds = {"answer_type": row.text("answer_type")} if is_answered else {}
        yield example_of(
            row.identifier("question_id"),
            answer_prefix(row.text("question")),
            picture=picture,
            answers=answers,
            references={"answers": answers, **kinds},
            slices=kinds,
        )


def _vqav2_rows(data: Path, split: str) -> Iterator[SourceRow]:
    stem, folder = _VQA_SPLITS[split]
    path = find_file(data, f"v2_OpenEnded_mscoco_{stem}_questions.json", source=VQA)
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    annotations = None
    if split not in ("test", "test-dev"):
        annotations = _annotations(data, f"v2_mscoco_{stem}_annotations.json", VQA)
    for row in read_list(path, "questions"):
        whole = row if annotations is None else _annotated(row, annotations)
        yield whole, _coco_picture(images, row, f"COCO_{folder}_")


def read_okvqa(data: Path, split: str) -> Iterator[Example]:
    """Read OK-VQA with its ten stemmed answers."""
    return okvqa_examples(_okvqa_rows(data, split), data, split)


def okvqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split."""
    for row, picture in rows:
        yield example_of(
            row.identifier("question_id"),
            answer_prefix(row.text("question")),
            picture=picture,
            answers=texts_in(row, "answers", "answer"),
            slices=slices_of(row, "question_type"),
        )


def _okvqa_rows(data: Path, split: str) -> Iterator[SourceRow]:
    folder = {"val": "val2014", "train": "train2014"}[split]
    path = find_file(data, f"OpenEnded_mscoco_{folder}_questions.json", source=OKVQA)
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    annotations = _annotations(data, f"mscoco_{folder}_annotations.json", OKVQA)
    for row in read_list(path, "questions"):
        yield _annotated(row, annotations), _coco_picture(images, row, f"COCO_{folder}_")


def read_aokvqa_direct(data: Path, split: str) -> Iterator[Example]:
    """Read A-OKVQA's direct answers; references mark the questions its own scorer leaves out."""
    return aokvqa_direct_examples(_aokvqa_rows(data, split), data, split)


def aokvqa_direct_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split; copies write a list of answers as Python prints it."""
    for row, picture in rows:
        answers = [] if split == "test" else printed_texts(row, "direct_answers")
        difficult = row.value("difficult_direct_answer", bool)
        yield example_of(
            row.text("question_id"),
            answer_prefix(row.text("question")),
            picture=picture,
            answers=answers,
            references={"answers": answers, "is_difficult": difficult},
        )


def read_aokvqa_choices(data: Path, split: str) -> Iterator[Example]:
    """Read A-OKVQA's four options in the order of the file; the answer is the right one's text."""
    return aokvqa_choices_examples(_aokvqa_rows(data, split), data, split)


def aokvqa_choices_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split."""
    for row, picture in rows:
        options = row.texts("choices")
        if len(options) != NUM_CHOICES:
            raise row.error(f"choices must be {NUM_CHOICES} texts, got {len(options)}")
        right = None if split == "test" else option_of(row, "correct_choice_idx", options)
        yield example_of(
            row.text("question_id"),
            choices_prefix(row.text("question"), options),
            picture=picture,
            answers=[] if right is None else [right],
            references={"options": options, "answer": right},
        )


def read_gqa(data: Path, split: str) -> Iterator[Example]:
    """Read the balanced questions of GQA."""
    name = f"{split}_balanced_questions.json"
    path = find_file(data, name, f"questions1.2/{name}", f"questions/{name}", source=GQA)
    return gqa_examples(_gqa_rows(path, find_file(data, "images", source=GQA), ""), data, split)


def gqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of the balanced rows; all rows are, in official files."""
    for row, picture in rows:
        if row.fields.get("isBalanced", True):
            yield example_of(
                row.identifier("id"),
                answer_prefix(row.text("question")),
                picture=picture,
                answers=row.text("answer"),
            )


def read_xgqa(data: Path, split: str) -> Iterator[Example]:
    """Read xGQA, one language after another, or "testdev_de" alone. Answers are English."""
    return xgqa_examples(_xgqa_rows(data, split), data, split)


def xgqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split; the part of a row is its language."""
    for row, picture in rows:
        language = row.text("part")
        question = row.identifier("id") if "id" in row else None
        yield example_of(
            f"{row.number if question is None else question}_{language}",
            answer_prefix(row.text("question")),
            picture=picture,
            answers=row.text("answer"),
            slices={"language": language},
            unit=question,
        )


def _xgqa_rows(data: Path, split: str) -> Iterator[SourceRow]:
    images = find_file(data, "images", source=GQA)
    for language in languages_of(split, XGQA_LANGUAGES):
        name = f"testdev_balanced_questions_{language}.json"
        path = find_file(
            data, name, f"annotations/zero_shot/{name}", f"zero_shot/{name}", source=XGQA
        )
        yield from _gqa_rows(path, images, language)


def read_textvqa(data: Path, split: str) -> Iterator[Example]:
    """Read TextVQA; pictures are turned upright where the id files of OpenImages are there."""
    path = find_file(data, f"TextVQA_0.5.1_{split}.json", source=TEXTVQA)
    images = find_file(data, _TEXTVQA_FOLDERS[split], source=TEXTVQA)
    rows = read_list(path, "data")
    named = ((row, picture_in(images, f"{row.text('image_id')}.jpg")) for row in rows)
    return textvqa_examples(named, data, split)


def textvqa_examples(
    rows: Iterator[tuple[FileRow, FilePicture | ParquetPicture]], data: Path, split: str
) -> Iterator[Example]:
    """Make the examples of a split, their pictures upright."""
    turns = _quarter_turns(data, _TEXTVQA_FOLDERS[split])
    for row, picture in rows:
        answers = [] if split == "test" else row.texts("answers")
        yield example_of(
            row.identifier("question_id"),
            answer_prefix(row.text("question")),
            picture=replace(picture, quarter_turns=turns.get(row.text("image_id"), 0))
            if turns
            else picture,
            answers=answers,
            references={"answers": answers, "answer_type": "other"},
        )


def read_vizwiz(data: Path, split: str) -> Iterator[Example]:
    """Read VizWiz-VQA without its empty answers, as the builder does."""
    path = find_file(data, f"annotations/{split}.json", f"Annotations/{split}.json", source=VIZWIZ)
    images = find_file(data, split, f"images/{split}", source=VIZWIZ)
    named = ((row, picture_in(images, row.text("image"))) for row in read_list(path))
    return vizwiz_examples(named, data, split)


def vizwiz_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split; copies name a picture without its ending."""
    is_answered = split != "test"
    for row, picture in rows:
        answers = texts_in(row, "answers", "answer") if is_answered else []
        yield example_of(
            f"{row.text('image').removesuffix('.jpg')}.jpg",
            answer_prefix(row.text("question")),
            picture=picture,
            answers=[one for one in answers if one],
            slices=slices_of(row, "answer_type") if is_answered else {},
        )


def option_of(row: FileRow, field: str, options: list[str]) -> str:
    """Return the option that an index names; raise DataError where it names none."""
    index = row.integer(field)
    if not 0 <= index < len(options):
        raise row.error(f"{field} must be 0..{len(options) - 1}, got {index}")
    return options[index]


def _builder_order(question: str) -> bytes:
    """Compute the key by which a built data set orders val: the MD5 of split name and question.

    Source: tensorflow_datasets core/hashing.py, core/split_builder.py, core/shuffle.py.
    """
    return hashlib.md5(f"validation{question}".encode(), usedforsecurity=False).digest()


def _annotations(data: Path, name: str, source: str) -> dict[str, FileRow]:
    """Question -> its annotation."""
    rows = read_list(find_file(data, name, source=source), "annotations")
    return {row.identifier("question_id"): row for row in rows}


def _annotated(row: FileRow, annotations: dict[str, FileRow]) -> FileRow:
    """A question with the fields of its annotation."""
    question = row.identifier("question_id")
    if question not in annotations:
        raise row.error(
            f"question {question} must have an annotation, the annotations lack it; take both "
            "files from one release"
        )
    found = annotations[question]
    return FileRow({**found.fields, **row.fields}, f"{row.where}, {found.where}", row.number)


def _coco_picture(images: Path, row: FileRow, stem: str = "") -> FilePicture:
    return picture_in(images, f"{stem}{row.integer('image_id'):012d}.jpg")


def _aokvqa_rows(data: Path, split: str) -> Iterator[SourceRow]:
    name = f"aokvqa_v1p0_{split}.json"
    path = find_file(data, name, f"aokvqa_v1p0/{name}", source=AOKVQA)
    images = find_file(data, f"{split}2017", f"images/{split}2017", source=COCO_IMAGES)
    for row in read_list(path):
        yield row, _coco_picture(images, row)


def _gqa_rows(path: Path, images: Path, part: str) -> Iterator[SourceRow]:
    for question, row in read_keyed(path):
        whole = FileRow({**row.fields, "id": question, "part": part}, row.where)
        yield whole, picture_in(images, f"{row.identifier('imageId')}.jpg")


def _quarter_turns(data: Path, folder: str) -> dict[str, int]:
    """Counter-clockwise quarter turns by image; empty where no id file lies in the data folder."""
    name = _TEXTVQA_ROTATIONS[folder]
    path = next((p for p in (data / name, data / folder / "rotation.csv") if p.is_file()), None)
    if path is None:
        return {}
    turns = {}
    for row in read_csv(path, ("ImageID", "Rotation")):
        # The field is empty where nobody looked.
        if row.text("Rotation") in ("", "0", "0.0"):
            continue
        degrees = row.value("Rotation", float)
        if degrees % 90:
            raise row.error(f"Rotation must be a multiple of 90, got {degrees:g}")
        turns[row.text("ImageID")] = int(degrees // 90) % 4
    return turns
