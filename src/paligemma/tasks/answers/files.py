"""Reads questions about photographs.

Source: the builders vqa, okvqa, aokvqa, gqa, xgqa, textvqa and vizwizvqa in big_vision/datasets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from paligemma.example import Example
from paligemma.tasks.reading.coco import COCO_IMAGES
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import (
    FileRow,
    read_csv,
    read_keyed,
    read_list,
)
from paligemma.tasks.reading.files import find_file
from paligemma.tasks.reading.languages import XGQA_LANGUAGES, languages_of
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
    stem, folder = _VQA_SPLITS[split]
    path = find_file(data, f"v2_OpenEnded_mscoco_{stem}_questions.json", source=VQA)
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    is_answered = split not in ("test", "test-dev")
    annotations = {}
    if is_answered:
        annotations = _annotations(data, f"v2_mscoco_{stem}_annotations.json", VQA)
    rows = list(read_list(path, "questions"))
    if split == "minival-shuffled":
        rows.sort(key=lambda row: _builder_order(row.identifier("question_id")))
    if split.startswith("minival"):
        rows = rows[-MINIVAL_QUESTIONS:]
    elif split == "maxival":
        rows = rows[:-MINIVAL_QUESTIONS]
    for row in rows:
        answers: list[str] = []
        kinds = {}
        if is_answered:
            given = _annotation(annotations, row)
            answers, kinds = _answer_texts(given), {"answer_type": given.text("answer_type")}
        yield example_of(
            row.identifier("question_id"),
            answer_prefix(row.text("question")),
            picture=_coco_picture(images, row, f"COCO_{folder}_"),
            answers=answers,
            references={"answers": answers, **kinds},
            slices=kinds,
        )


def read_okvqa(data: Path, split: str) -> Iterator[Example]:
    """Read OK-VQA with its ten stemmed answers."""
    folder = {"val": "val2014", "train": "train2014"}[split]
    path = find_file(data, f"OpenEnded_mscoco_{folder}_questions.json", source=OKVQA)
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    annotations = _annotations(data, f"mscoco_{folder}_annotations.json", OKVQA)
    for row in read_list(path, "questions"):
        given = _annotation(annotations, row)
        yield example_of(
            row.identifier("question_id"),
            answer_prefix(row.text("question")),
            picture=_coco_picture(images, row, f"COCO_{folder}_"),
            answers=_answer_texts(given),
            slices={"question_type": given.text("question_type")},
        )


def read_aokvqa_direct(data: Path, split: str) -> Iterator[Example]:
    """Read A-OKVQA's direct answers; references mark the questions its own scorer leaves out."""
    for row, picture in _aokvqa_rows(data, split):
        answers = [] if split == "test" else row.texts("direct_answers")
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
    for row, picture in _aokvqa_rows(data, split):
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
    yield from _gqa_rows(path, find_file(data, "images", source=GQA), "")


def read_xgqa(data: Path, split: str) -> Iterator[Example]:
    """Read xGQA, one language after another, or "testdev_de" alone. Answers are English."""
    languages = languages_of(split, XGQA_LANGUAGES)
    images = find_file(data, "images", source=GQA)
    for language in languages:
        name = f"testdev_balanced_questions_{language}.json"
        path = find_file(
            data, name, f"annotations/zero_shot/{name}", f"zero_shot/{name}", source=XGQA
        )
        yield from _gqa_rows(path, images, language)


def read_textvqa(data: Path, split: str) -> Iterator[Example]:
    """Read TextVQA; pictures are turned upright where the id files of OpenImages are there."""
    folder = _TEXTVQA_FOLDERS[split]
    path = find_file(data, f"TextVQA_0.5.1_{split}.json", source=TEXTVQA)
    images = find_file(data, folder, source=TEXTVQA)
    turns = _quarter_turns(data, folder)
    for row in read_list(path, "data"):
        image = row.text("image_id")
        answers = [] if split == "test" else row.texts("answers")
        yield example_of(
            row.identifier("question_id"),
            answer_prefix(row.text("question")),
            picture=picture_in(images, f"{image}.jpg", quarter_turns=turns.get(image, 0)),
            answers=answers,
            references={"answers": answers, "answer_type": "other"},
        )


def read_vizwiz(data: Path, split: str) -> Iterator[Example]:
    """Read VizWiz-VQA without its empty answers, as the builder does."""
    path = find_file(data, f"annotations/{split}.json", f"Annotations/{split}.json", source=VIZWIZ)
    images = find_file(data, split, f"images/{split}", source=VIZWIZ)
    for row in read_list(path):
        is_answered = split != "test"
        yield example_of(
            row.text("image"),
            answer_prefix(row.text("question")),
            picture=picture_in(images, row.text("image")),
            answers=[one for one in _answer_texts(row) if one] if is_answered else [],
            slices={"answer_type": row.text("answer_type")} if is_answered else {},
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


def _annotation(annotations: dict[str, FileRow], row: FileRow) -> FileRow:
    question = row.identifier("question_id")
    if question not in annotations:
        raise row.error(
            f"question {question} must have an annotation, the annotations lack it; take both "
            "files from one release"
        )
    return annotations[question]


def _answer_texts(row: FileRow) -> list[str]:
    """Texts of a list of answer records, repeats kept."""
    return [one.text("answer") for one in row.objects("answers")]


def _coco_picture(images: Path, row: FileRow, stem: str = "") -> FilePicture:
    return picture_in(images, f"{stem}{row.integer('image_id'):012d}.jpg")


def _aokvqa_rows(data: Path, split: str) -> Iterator[tuple[FileRow, FilePicture]]:
    name = f"aokvqa_v1p0_{split}.json"
    path = find_file(data, name, f"aokvqa_v1p0/{name}", source=AOKVQA)
    images = find_file(data, f"{split}2017", f"images/{split}2017", source=COCO_IMAGES)
    for row in read_list(path):
        yield row, _coco_picture(images, row)


def _gqa_rows(path: Path, images: Path, language: str) -> Iterator[Example]:
    for question, row in read_keyed(path):
        yield example_of(
            f"{question}_{language}" if language else question,
            answer_prefix(row.text("question")),
            picture=picture_in(images, f"{row.identifier('imageId')}.jpg"),
            answers=row.text("answer"),
            slices={"language": language} if language else {},
            unit=question if language else None,
        )


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
