"""Where questions about documents, scene text, charts and book covers lie on disk.

Source: the builders docvqa, infovqa, stvqa and chartqa in big_vision/datasets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.metrics.documents import comma_orderings
from paligemma.tasks.reading.files import FilePicture, find_file, read_json, value, values
from paligemma.tasks.reading.prefixes import answer_prefix, bare_prefix, lower_ascii
from paligemma.tasks.reading.rows import Row, keyed_rows, list_rows, of_split

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
    """DocVQA; "test" has no answers and is only good for a submission."""
    names = {
        "val": ("val_v1.0_withQT.json", "val_v1.0.json"),
        "train": ("train_v1.0_withQT.json", "train_v1.0.json"),
        "test": ("test_v1.0.json",),
    }
    path = find_file(data, *of_split(names, split, "docvqa"), source=RRC)
    images = find_file(data, split, f"spdocvqa_images/{split}", "spdocvqa_images", source=RRC)
    has_folder = (images / "documents").is_dir()  # the later release keeps pictures beside it
    for where, row in _questions(path):
        image = value(row, "image", str, where)
        image = image if has_folder else Path(image).name
        answers = _answers(row, where, split)
        yield Example(
            id=str(value(row, "questionId", int, where)),
            prefix=bare_prefix(value(row, "question", str, where)),
            pictures=(FilePicture(path=images / image),),
            references={"answers": answers},
            targets=tuple(answers),
            slices=_kinds(row, "question_types", where),
        )


def read_infovqa(data: Path, split: str) -> Iterator[Example]:
    """InfographicVQA; in "val" the parts of an answer may come in any order."""
    names = {
        "val": ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json"),
        "train": ("infographicsVQA_train_v1.0.json",),
        "test": ("infographicsVQA_test_v1.0.json",),
    }
    path = find_file(data, *of_split(names, split, "infovqa"), source=RRC)
    images = find_file(data, "images", "infographicsvqa_images", source=RRC)
    for where, row in _questions(path):
        answers = _answers(row, where, split)
        taught = answers
        if split == "val":
            taught = [ordering for answer in answers for ordering in comma_orderings(answer)]
        yield Example(
            id=str(value(row, "questionId", int, where)),
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(FilePicture(path=images / value(row, "image_local_name", str, where)),),
            references={"answers": answers, "any_order": split == "val"},
            targets=tuple(lower_ascii(answer) for answer in taught),
            slices=_kinds(row, "answer_type", where),
        )


def read_stvqa(data: Path, split: str) -> Iterator[Example]:
    """ST-VQA, task 3; "val" are the training questions about the pictures of a released list."""
    of_split({"val": "", "train": "", "test": ""}, split, "st-vqa")
    stem = "test" if split == "test" else "train"
    path = find_file(data, f"{stem}_task_3.json", source=RRC)
    folders = ("test_task3_images",) if split == "test" else ("train_images",)
    images = find_file(data, *folders, source=RRC)
    val_images = frozenset() if split == "test" else _stvqa_val_images(data)
    for where, row in _questions(path):
        file_path = value(row, "file_path", str, where)
        if split != "test" and (file_path in val_images) != (split == "val"):
            continue
        answers = _answers(row, where, split)
        yield Example(
            id=str(value(row, "question_id", int, where)),
            prefix=answer_prefix(value(row, "question", str, where)),
            pictures=(FilePicture(path=_stvqa_image(data, images, file_path)),),
            references={"answers": answers},
            targets=tuple(lower_ascii(answer) for answer in answers),
            slices={"source": file_path.split("/")[0]},
        )


def read_chartqa(data: Path, split: str) -> Iterator[Example]:
    """ChartQA, the questions by people and the augmented ones."""
    of_split({"test": "", "val": "", "train": ""}, split, "chartqa")
    for kind in CHARTQA_KINDS:
        name = f"{split}/{split}_{kind}.json"
        path = find_file(data, name, f"ChartQA Dataset/{name}", source=CHARTQA)
        for number, row in list_rows(read_json(path), path):
            where = f"{path}, row {number}"
            image = path.parent / "png" / value(row, "imgname", str, where)
            label = value(row, "label", str, where)
            yield Example(
                id=f"{kind}/{number}",
                prefix=bare_prefix(value(row, "query", str, where)),
                pictures=(FilePicture(path=image),),
                references=label,
                targets=(label,),
                slices={"kind": kind},
            )


def read_ocrvqa(data: Path, split: str) -> Iterator[Example]:
    """OCR-VQA: every question about a book cover is one example."""
    number_of_split = of_split(_OCRVQA_SPLITS, split, "ocr-vqa")
    path = find_file(data, "dataset.json", source=OCRVQA)
    images = find_file(data, "images", source=OCRVQA)
    for key, row in keyed_rows(read_json(path), path):
        where = f"{path}, {key}"
        if value(row, "split", int, where) != number_of_split:
            continue
        questions, answers = (
            values(row, "questions", str, where),
            values(row, "answers", str, where),
        )
        if len(questions) != len(answers):
            raise DataError(
                f"{where}: every question needs an answer, got {len(questions)} questions and "
                f"{len(answers)} answers"
            )
        suffix = Path(value(row, "imageURL", str, where)).suffix
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield Example(
                id=f"{key}/{number}",
                prefix=answer_prefix(question),
                pictures=(FilePicture(path=images / f"{key}{suffix}"),),
                references=answer,
                targets=(answer,),
            )


def _questions(path: Path) -> Iterator[tuple[str, Row]]:
    for number, row in list_rows(read_json(path), path, "data"):
        yield f"{path}, data row {number}", row


def _answers(row: Row, where: str, split: str) -> list[str]:
    return [] if split == "test" and "answers" not in row else values(row, "answers", str, where)


def _kinds(row: Row, name: str, where: str) -> dict[str, str]:
    """Types of a question, which may be several, where the file tells them."""
    return {name: ", ".join(values(row, name, str, where))} if row.get(name) else {}


def _stvqa_val_images(data: Path) -> frozenset[str]:
    path = find_file(data, STVQA_LIST, source=STVQA_LIST_SOURCE)
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    images = frozenset(line for line in lines if line)
    if not images:
        raise DataError(f"{path} must name one image a line, such as coco-text/x.jpg; it is empty")
    return images


def _stvqa_image(data: Path, images: Path, file_path: str) -> Path:
    """Pictures of coco-text are shrunk in the release; COCO's own are used instead."""
    if file_path.startswith("coco-text/"):
        return data / "train2014" / Path(file_path).name
    return images / file_path
