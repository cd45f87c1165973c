"""Reads questions about documents, scene text, charts and book covers.

Source: the builders docvqa, infovqa, stvqa and chartqa in big_vision/datasets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.metrics.documents import comma_orderings
from paligemma.tasks.reading.examples import SourceRow, example_of, objects_in
from paligemma.tasks.reading.file_rows import (
    FileRow,
    read_keyed,
    read_list,
)
from paligemma.tasks.reading.files import find_file, read_text_lines
from paligemma.tasks.reading.pictures import FilePicture, picture_in
from paligemma.tasks.reading.prefixes import answer_prefix, bare_prefix, lower_ascii

RRC = "rrc.cvc.uab.es (Robust Reading Competition, after registering)"
CHARTQA = "github.com/vis-nlp/ChartQA or the hub dataset of that name, as 'ChartQA Dataset'"
OCRVQA = "ocr-vqa.github.io; images by its loadDataset.py"

# Kinds of ChartQA questions; each has its own files.
CHARTQA_KINDS = ("human", "augmented")
_OCRVQA_SPLITS = {"test": 3, "val": 2, "train": 1}
STVQA_LIST = "stvqa_val_images.txt"
STVQA_LIST_SOURCE = (
    "the image paths of val_ids.PSEUDO_VAL_IMAGE_PATHS in big_vision/datasets/stvqa, one a line "
    "(2,628 questions); its repository refers to them but does not hold them (commit 0127fb6), so "
    "ask its authors, or hold out pictures of your own and say so"
)


def read_docvqa(data: Path, split: str) -> Iterator[Example]:
    """Read DocVQA; "test" has no answers and serves a submission only."""
    names = {
        "val": ("val_v1.0_withQT.json", "val_v1.0.json"),
        "train": ("train_v1.0_withQT.json", "train_v1.0.json"),
        "test": ("test_v1.0.json",),
    }
    path = find_file(data, *names[split], source=RRC)
    images = find_file(data, split, f"spdocvqa_images/{split}", "spdocvqa_images", source=RRC)
    has_folder = (images / "documents").is_dir()  # the later release keeps pictures beside it

    def named(row: FileRow) -> FilePicture:
        image = row.text("image")
        return picture_in(images, image if has_folder else Path(image).name)

    return docvqa_examples(((row, named(row)) for row in read_list(path, "data")), data, split)


def docvqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split."""
    for row, picture in rows:
        answers = _answers(row, split)
        yield example_of(
            str(row.integer("questionId")),
            bare_prefix(row.text("question")),
            picture=picture,
            answers=answers,
            references={"answers": answers},
            slices=_kinds(row, "question_types"),
        )


def read_infovqa(data: Path, split: str) -> Iterator[Example]:
    """Read InfographicVQA; in "val" the parts of an answer may come in any order."""
    names = {
        "val": ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json"),
        "train": ("infographicsVQA_train_v1.0.json",),
        "test": ("infographicsVQA_test_v1.0.json",),
    }
    path = find_file(data, *names[split], source=RRC)
    images = find_file(data, "images", "infographicsvqa_images", source=RRC)
    rows = read_list(path, "data")
    named = ((row, picture_in(images, row.text("image_local_name"))) for row in rows)
    return infovqa_examples(named, data, split)


def infovqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split."""
    for row, picture in rows:
        answers = _answers(row, split)
        taught = answers
        if split == "val":
            taught = [ordering for answer in answers for ordering in comma_orderings(answer)]
        yield example_of(
            str(row.integer("questionId")),
            answer_prefix(row.text("question")),
            picture=picture,
            answers=answers,
            references={"answers": answers, "any_order": split == "val"},
            targets=map(lower_ascii, taught),
            slices=_kinds(row, "answer_type"),
        )


def read_stvqa(data: Path, split: str) -> Iterator[Example]:
    """Read ST-VQA, task 3; "val" holds the training questions about pictures of a list."""
    return stvqa_examples(_stvqa_rows(data, split), data, split)


def stvqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of the questions of a split.

    The training questions of a copy without the paths of its pictures are those of val too.
    """
    val_images: frozenset[str] | None = None
    for whole, picture in rows:
        file_path = whole.text("file_path") if "file_path" in whole else None
        if split != "test" and whole.fields.get("part") != "val":
            if file_path is None and split == "val":
                raise whole.error(
                    "val holds the training questions about listed pictures, and this copy has no "
                    "column file_path; read its train instead"
                )
            if file_path is not None:
                val_images = _stvqa_val_images(data) if val_images is None else val_images
                if (file_path in val_images) != (split == "val"):
                    continue
        for name, row in _stvqa_questions(whole):
            answers = _answers(row, split)
            yield example_of(
                name,
                answer_prefix(row.text("question")),
                picture=picture,
                answers=answers,
                references={"answers": answers},
                targets=map(lower_ascii, answers),
                slices={"source": file_path.split("/")[0]} if file_path else {},
            )


def _stvqa_questions(row: FileRow) -> Iterator[tuple[str, FileRow]]:
    """The question of a row, or all those about its picture, each with its id."""
    if isinstance(row.fields.get("question"), str):
        yield str(row.integer("question_id") if "question_id" in row else row.number), row
        return
    for place, one in enumerate(objects_in(row, "question")):
        yield f"{row.number}/{place}", one


def _stvqa_rows(data: Path, split: str) -> Iterator[SourceRow]:
    is_test = split == "test"
    path = find_file(data, f"{'test' if is_test else 'train'}_task_3.json", source=RRC)
    images = find_file(data, "test_task3_images" if is_test else "train_images", source=RRC)
    for row in read_list(path, "data"):
        yield row, _stvqa_image(data, images, row.text("file_path"))


def read_chartqa(data: Path, split: str) -> Iterator[Example]:
    """Read ChartQA, the questions by people and the augmented ones."""
    return chartqa_examples(_chartqa_rows(data, split), data, split)


def chartqa_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a split, numbered within their kind as in its file."""
    numbers = dict.fromkeys(CHARTQA_KINDS, 0)
    for row, picture in rows:
        kind = _chartqa_kind(row)
        yield example_of(
            f"{kind}/{numbers[kind]}",
            bare_prefix(row.text("query")),
            picture=picture,
            answers=_only_text(row, "label"),
            slices={"kind": kind},
        )
        numbers[kind] += 1


def _chartqa_kind(row: FileRow) -> str:
    """Whether a person or a program asked; copies write human_test, augmented_test, 0 or 1."""
    word = str(row.any("kind")).lower().partition("_")[0]
    kinds = {"human": "human", "0": "human", "augmented": "augmented", "machine": "augmented"}
    kind = {**kinds, "1": "augmented"}.get(word)
    if kind is None:
        raise row.error(f"a question is human or augmented (0 or 1 in a copy), got {word!r:.80}")
    return kind


def _only_text(row: FileRow, name: str) -> str:
    """Read a text, or the only one of a list."""
    if not isinstance(row.fields.get(name), list):
        return row.text(name)
    texts = row.texts(name)
    if len(texts) != 1:
        raise row.error(f"{name} must be one text, got {len(texts)}")
    return texts[0]


def _chartqa_rows(data: Path, split: str) -> Iterator[SourceRow]:
    for kind in CHARTQA_KINDS:
        name = f"{split}/{split}_{kind}.json"
        path = find_file(data, name, f"ChartQA Dataset/{name}", source=CHARTQA)
        for row in read_list(path):
            whole = FileRow({**row.fields, "kind": kind}, row.where, row.number)
            yield whole, picture_in(path.parent / "png", row.text("imgname"))


def read_ocrvqa(data: Path, split: str) -> Iterator[Example]:
    """Read OCR-VQA: every question about a book cover is one example."""
    number_of_split = _OCRVQA_SPLITS[split]
    path = find_file(data, "dataset.json", source=OCRVQA)
    images = find_file(data, "images", source=OCRVQA)
    for key, row in read_keyed(path):
        if row.integer("split") != number_of_split:
            continue
        questions, answers = row.texts("questions"), row.texts("answers")
        if len(questions) != len(answers):
            raise row.error(
                f"every question needs an answer, got {len(questions)} questions and "
                f"{len(answers)} answers"
            )
        suffix = Path(row.text("imageURL")).suffix
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield example_of(
                f"{key}/{number}",
                answer_prefix(question),
                picture=picture_in(images, f"{key}{suffix}"),
                answers=answer,
            )


def _answers(row: FileRow, split: str) -> list[str]:
    return [] if split == "test" and "answers" not in row else row.texts("answers")


def _kinds(row: FileRow, name: str) -> dict[str, tuple[str, ...]]:
    """Read the types of a question, which may be several, where the file gives them."""
    return {name: tuple(row.texts(name))} if row.fields.get(name) else {}


def _stvqa_val_images(data: Path) -> frozenset[str]:
    path = find_file(data, STVQA_LIST, source=STVQA_LIST_SOURCE)
    images = frozenset(line for _, line in read_text_lines(path))
    if not images:
        raise DataError(f"{path} must name one image a line, such as coco-text/x.jpg; it is empty")
    return images


def _stvqa_image(data: Path, images: Path, file_path: str) -> FilePicture:
    """Return a picture; COCO's own replace the shrunk ones of coco-text."""
    if file_path.startswith("coco-text/"):
        return picture_in(data / "train2014", Path(file_path).name)
    return picture_in(images, file_path)
