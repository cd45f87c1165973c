"""Where questions about photographs lie on disk.

Source: the builders vqa, okvqa, aokvqa, gqa, xgqa, textvqa and vizwizvqa in big_vision/datasets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.reading.files import (
    FilePicture,
    find_file,
    identifier,
    read_csv,
    read_json,
    value,
    values,
)
from paligemma.tasks.reading.languages import XGQA_LANGUAGES
from paligemma.tasks.reading.prefixes import answer_prefix, choices_prefix
from paligemma.tasks.reading.rows import keyed_rows, list_rows, of_split

VQA = "visualqa.org/download.html"
COCO_IMAGES = "images.cocodataset.org/zips"
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
    "val": ("val2014", "val2014"),
    "train": ("train2014", "train2014"),
    "test": ("test2015", "test2015"),
    "test-dev": ("test-dev2015", "test2015"),
}
_TEXTVQA_ROTATIONS = {
    "train_images": "train-images-boxable-with-rotation.csv",
    "test_images": "test-images-with-rotation.csv",
}


def read_vqav2(data: Path, split: str) -> Iterator[Example]:
    """VQAv2, with the ten answers and the answer type as references.

    "minival" are the last 10,240 questions of val in the order of the file, "minival-shuffled" the
    last in the order in which big_vision's builder stores them; "test" and "test-dev" have no
    answers.
    """
    stem, folder = of_split(_VQA_SPLITS, split, "vqav2")
    path = find_file(data, f"v2_OpenEnded_mscoco_{stem}_questions.json", source=VQA)
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    answered = split not in ("test", "test-dev")
    annotations = _annotations(data, f"v2_mscoco_{stem}_annotations.json", VQA) if answered else {}
    rows = list(list_rows(read_json(path), path, "questions"))
    if split == "minival-shuffled":
        rows.sort(key=lambda one: _builder_order(identifier(one[1], "question_id", f"{path}")))
    for number, row in rows[-MINIVAL_QUESTIONS:] if split.startswith("minival") else rows:
        where = f"{path}, row {number}"
        question = identifier(row, "question_id", where)
        answers: list[str] = []
        references: dict[str, Any] = {"answers": answers}
        if answered:
            place, given = _annotation(annotations, question, where)
            answers += _answer_texts(given, "answer", place)
            references["answer_type"] = value(given, "answer_type", str, place)
        kinds = {"answer_type": references["answer_type"]} if answered else {}
        yield Example(
            id=question,
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(_coco_picture(images, f"COCO_{folder}_", row, where),),
            references=references,
            targets=tuple(answers),
            slices=kinds,
        )


def read_okvqa(data: Path, split: str) -> Iterator[Example]:
    """OK-VQA; the ten answers are the stemmed ones."""
    folder = of_split({"val": "val2014", "train": "train2014"}, split, "okvqa")
    path = find_file(data, f"OpenEnded_mscoco_{folder}_questions.json", source=OKVQA)
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    annotations = _annotations(data, f"mscoco_{folder}_annotations.json", OKVQA)
    for number, row in list_rows(read_json(path), path, "questions"):
        where = f"{path}, row {number}"
        question = identifier(row, "question_id", where)
        place, given = _annotation(annotations, question, where)
        answers = _answer_texts(given, "answer", place)
        yield Example(
            id=question,
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(_coco_picture(images, f"COCO_{folder}_", row, where),),
            references=answers,
            targets=tuple(answers),
            slices={"question_type": value(given, "question_type", str, place)},
        )


def read_aokvqa_direct(data: Path, split: str) -> Iterator[Example]:
    """A-OKVQA, direct answers; references say too which questions its own scorer leaves out."""
    for where, row, picture in _aokvqa_rows(data, split):
        answers = [] if split == "test" else values(row, "direct_answers", str, where)
        difficult = value(row, "difficult_direct_answer", bool, where)
        yield Example(
            id=value(row, "question_id", str, where),
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(picture,),
            references={"answers": answers, "is_difficult": difficult},
            targets=tuple(answers),
        )


def read_aokvqa_choices(data: Path, split: str) -> Iterator[Example]:
    """A-OKVQA, one of four options, in the order of the file; the text of the right one."""
    for where, row, picture in _aokvqa_rows(data, split):
        options = values(row, "choices", str, where)
        if len(options) != NUM_CHOICES:
            raise DataError(f"{where}: choices must be {NUM_CHOICES} texts, got {len(options)}")
        right = None if split == "test" else _option(row, "correct_choice_idx", options, where)
        yield Example(
            id=value(row, "question_id", str, where),
            prefix=choices_prefix(value(row, "question", str, where), options),
            pictures=(picture,),
            references={"options": options, "answer": right},
            targets=() if right is None else (right,),
        )


def read_gqa(data: Path, split: str) -> Iterator[Example]:
    """GQA, the balanced questions."""
    names = {"testdev": "testdev", "val": "val", "train": "train"}
    name = f"{of_split(names, split, 'gqa')}_balanced_questions.json"
    path = find_file(data, name, f"questions1.2/{name}", f"questions/{name}", source=GQA)
    yield from _gqa_rows(path, find_file(data, "images", source=GQA), "")


def read_xgqa(data: Path, split: str) -> Iterator[Example]:
    """xGQA, all languages one after another; "testdev_de" reads one alone. Answers are English."""
    stem, _, only = split.partition("_")
    of_split({"testdev": ""}, stem, "xgqa")
    if only and only not in XGQA_LANGUAGES:
        raise DataError(f"xgqa has the languages {', '.join(XGQA_LANGUAGES)}, got {only!r}")
    images = find_file(data, "images", source=GQA)
    for language in [only] if only else XGQA_LANGUAGES:
        name = f"testdev_balanced_questions_{language}.json"
        path = find_file(
            data, name, f"annotations/zero_shot/{name}", f"zero_shot/{name}", source=XGQA
        )
        yield from _gqa_rows(path, images, language)


def read_textvqa(data: Path, split: str) -> Iterator[Example]:
    """TextVQA; pictures are turned upright where the id files of OpenImages are there."""
    folders = {"val": "train_images", "train": "train_images", "test": "test_images"}
    folder = of_split(folders, split, "textvqa")
    path = find_file(data, f"TextVQA_0.5.1_{split}.json", source=TEXTVQA)
    images = find_file(data, folder, source=TEXTVQA)
    turns = _quarter_turns(data, folder)
    for number, row in list_rows(read_json(path), path, "data"):
        where = f"{path}, row {number}"
        image = value(row, "image_id", str, where)
        answers = [] if split == "test" else values(row, "answers", str, where)
        picture = FilePicture(path=images / f"{image}.jpg", quarter_turns=turns.get(image, 0))
        yield Example(
            id=identifier(row, "question_id", where),
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(picture,),
            references={"answers": answers, "answer_type": "other"},
            targets=tuple(answers),
        )


def read_vizwiz(data: Path, split: str) -> Iterator[Example]:
    """VizWiz-VQA; answers that are empty are left out, as the builder does."""
    of_split({"val": "", "train": "", "test": ""}, split, "vizwiz")
    path = find_file(data, f"annotations/{split}.json", f"Annotations/{split}.json", source=VIZWIZ)
    images = find_file(data, split, f"images/{split}", source=VIZWIZ)
    for number, row in list_rows(read_json(path), path):
        where = f"{path}, row {number}"
        image = value(row, "image", str, where)
        answered = split != "test"
        answers = [one for one in _answer_texts(row, "answer", where) if one] if answered else []
        yield Example(
            id=image,
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(FilePicture(path=images / image),),
            references=answers,
            targets=tuple(answers),
            slices={"answer_type": value(row, "answer_type", str, where)} if answered else {},
        )


def _builder_order(question: str) -> bytes:
    """Where a question of val comes in a built data set: by the MD5 of split name and key.

    Source: tensorflow_datasets core/hashing.py, core/split_builder.py, core/shuffle.py.
    """
    return hashlib.md5(f"validation{question}".encode(), usedforsecurity=False).digest()


def _annotations(data: Path, name: str, source: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Question -> where it stands and its annotation."""
    path = find_file(data, name, source=source)
    found = {}
    for number, row in list_rows(read_json(path), path, "annotations"):
        where = f"{path}, row {number}"
        found[identifier(row, "question_id", where)] = where, row
    return found


def _annotation(
    annotations: dict[str, tuple[str, dict[str, Any]]], question: str, where: str
) -> tuple[str, dict[str, Any]]:
    if question not in annotations:
        raise DataError(
            f"{where}: question {question} must have an annotation, the annotations lack it; "
            "take both files from one release"
        )
    return annotations[question]


def _answer_texts(row: dict[str, Any], field: str, where: str) -> list[str]:
    """Texts of a list of answer records, repeats kept."""
    records = value(row, "answers", list, where)
    return [value(one, field, str, f"{where}, answers") for one in records]


def _coco_picture(images: Path, stem: str, row: dict[str, Any], where: str) -> FilePicture:
    return FilePicture(path=images / f"{stem}{value(row, 'image_id', int, where):012d}.jpg")


def _aokvqa_rows(data: Path, split: str) -> Iterator[tuple[str, dict[str, Any], FilePicture]]:
    of_split({"val": "", "train": "", "test": ""}, split, "aokvqa")
    name = f"aokvqa_v1p0_{split}.json"
    path = find_file(data, name, f"aokvqa_v1p0/{name}", source=AOKVQA)
    folder = f"{split}2017"
    images = find_file(data, folder, f"images/{folder}", source=COCO_IMAGES)
    for number, row in list_rows(read_json(path), path):
        where = f"{path}, row {number}"
        yield where, row, _coco_picture(images, "", row, where)


def _option(row: dict[str, Any], field: str, options: list[str], where: str) -> str:
    """The option that an index names."""
    index = value(row, field, int, where)
    if not 0 <= index < len(options):
        raise DataError(f"{where}: {field} must be 0..{len(options) - 1}, got {index}")
    return options[index]


def _gqa_rows(path: Path, images: Path, language: str) -> Iterator[Example]:
    for question, row in keyed_rows(read_json(path), path):
        where = f"{path}, {question}"
        answer = value(row, "answer", str, where)
        yield Example(
            id=f"{question}_{language}" if language else question,
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(FilePicture(path=images / f"{identifier(row, 'imageId', where)}.jpg"),),
            references=answer,
            targets=(answer,),
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
    for number, row in read_csv(path, ("ImageID", "Rotation")):
        # Empty where nobody looked.
        if row["Rotation"] in ("", "0", "0.0"):
            continue
        degrees = value(row, "Rotation", float, f"{path}, row {number}")
        if degrees % 90:
            raise DataError(
                f"{path}, row {number}: Rotation must be a multiple of 90, got {degrees:g}"
            )
        turns[row["ImageID"]] = int(degrees // 90) % 4
    return turns
