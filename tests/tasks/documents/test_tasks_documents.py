"""Document questions: files in the published layouts, prompts, scores and submissions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_files import write_json, write_picture, write_text

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example, Prediction
from paligemma.tasks.documents.files import (
    read_chartqa,
    read_docvqa,
    read_infovqa,
    read_ocrvqa,
    read_stvqa,
)
from paligemma.tasks.documents.rows import TASKS
from paligemma.tasks.reading.prefixes import answer_prefix, bare_prefix
from paligemma.tasks.task import Task

VECTORS = Path(__file__).parents[2] / "metrics" / "data" / "metric_vectors.json"
ROWS: dict[str, Task] = {task.name: task for task in TASKS}


def _prompt_vector(number: str) -> dict[str, Any]:
    vectors = json.loads(VECTORS.read_text("utf-8"))["vectors"]
    return next(one for one in vectors if one["id"] == f"prompt_format-{number}")


def _said(examples: list[Example], texts: list[str]) -> list[Prediction]:
    return [Prediction(id=one.id, text=text) for one, text in zip(examples, texts, strict=True)]


def _submitted(name: str, examples: list[Example]) -> Any:
    task = ROWS[name]
    assert task.submission is not None
    assert task.server_splits == ("test",)
    return task.submission(examples, _said(examples, ["x"] * len(examples)))


def _docvqa(data: Path, **row: Any) -> Path:
    base = {
        "questionId": 49153,
        "question": "What is the actual value per 1000?",
        "question_types": ["figure/diagram", "handwritten"],
        "image": "documents/pybv0228_81.png",
        "docId": 14465,
        "answers": ["0.28", "0.280"],
        "data_split": "val",
    }
    row = {name: one for name, one in {**base, **row}.items() if one is not None}
    other = {**base, "questionId": 24580, "question": "Who?", "answers": ["ITC Limited"]}
    write_json(data / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": [row, other]})
    write_picture(data / "val/documents/pybv0228_81.png", size_wh=(6, 4))
    return data


def test_docvqa_asks_the_bare_question(tmp_path: Path) -> None:
    first, second = read_docvqa(_docvqa(tmp_path), "val")
    assert first.id == "49153"
    assert first.prefix == "What is the actual value per 1000?"
    assert first.references == {"answers": ["0.28", "0.280"]}
    assert first.targets == ("0.28", "0.280")
    assert first.slices == {"question_types": ("figure/diagram", "handwritten")}
    assert first.pictures[0].read(1000).shape == (4, 6, 3)
    assert second.prefix == "Who?"


def test_docvqa_pictures_of_the_later_release_are_found(tmp_path: Path) -> None:
    _docvqa(tmp_path)
    (tmp_path / "val").rename(tmp_path / "gone")
    write_picture(tmp_path / "spdocvqa_images/pybv0228_81.png", size_wh=(5, 4))
    assert next(read_docvqa(tmp_path, "val")).pictures[0].read(1000).shape == (4, 5, 3)


@pytest.mark.parametrize("field", ["questionId", "question", "image", "answers"])
def test_a_missing_docvqa_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(DataError, match=rf"val_v1.0_withQT.json, data, row 0 .*'{field}'"):
        list(read_docvqa(_docvqa(tmp_path, **{field: None}), "val"))


def test_a_missing_docvqa_file_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_v1.0_withQT.json.*rrc.cvc.uab.es"):
        list(read_docvqa(tmp_path, "train"))


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="docvqa has the splits val, train, test, got 'dev'"):
        ROWS["docvqa"].read(tmp_path, "dev")


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    _docvqa(tmp_path)
    write_json(tmp_path / "val_v1.0_withQT.json", {"rows": []})
    with pytest.raises(DataError, match=r"must hold an object with the list 'data'"):
        list(read_docvqa(tmp_path, "val"))
    write_json(tmp_path / "val_v1.0_withQT.json", {"data": ["text"]})
    with pytest.raises(DataError, match="row 0 must be a JSON object"):
        list(read_docvqa(tmp_path, "val"))


def test_perfect_docvqa_answers_score_100_in_any_case(tmp_path: Path) -> None:
    examples = list(read_docvqa(_docvqa(tmp_path), "val"))
    measures = ROWS["docvqa"].score(examples, _said(examples, ["0.280", "itc limited"]))
    assert [(one.name, one.value * one.scale) for one in measures] == [
        ("anls", 100.0),
        ("anls_server_like", 100.0),
    ]
    assert ROWS["docvqa"].headline == "anls"


def test_a_test_split_is_read_but_not_scored_and_makes_a_submission(tmp_path: Path) -> None:
    row = {"questionId": 57349, "question": "What?", "image": "documents/x.png"}
    write_json(tmp_path / "test_v1.0.json", {"data": [row]})
    (tmp_path / "test/documents").mkdir(parents=True)
    examples = list(read_docvqa(tmp_path, "test"))
    assert examples[0].targets == ()
    with pytest.raises(DataError, match="has no answers and cannot be scored"):
        ROWS["docvqa"].score(examples, _said(examples, ["x"]))
    submission = _submitted("docvqa", examples)
    assert submission == [{"questionId": 57349, "answer": "x"}]
    submission = _submitted("st-vqa", examples)
    assert submission == [{"question_id": 57349, "answer": "x"}]


def _infovqa(data: Path) -> Path:
    row = {
        "questionId": 98313,
        "question": "Which two?",
        "image_local_name": "20471.jpeg",
        "image_url": "https://x/y.jpg",
        "answers": ["Red, Bl\u00dcE"],
        "answer_type": ["multi-span"],
        "data_split": "val",
    }
    write_json(data / "infographicsVQA_val_v1.0_withQT.json", {"data": [row]})
    write_json(data / "infographicsVQA_train_v1.0.json", {"data": [row]})
    write_picture(data / "images/20471.jpeg")
    return data


def test_infovqa_takes_parts_in_any_order_on_val_alone(tmp_path: Path) -> None:
    val, train = (list(read_infovqa(_infovqa(tmp_path), split)) for split in ("val", "train"))
    assert val[0].prefix == "answer en Which two?"
    assert val[0].slices == {"answer_type": ("multi-span",)}
    assert val[0].targets == ("red, bl\u00dce", "bl\u00dce, red"), "A to Z alone"
    assert train[0].targets == ("red, bl\u00dce",)
    score = ROWS["infovqa"].score
    assert score(val, _said(val, ["bl\u00fce, red"]))[0].value == 1.0
    assert score(train, _said(train, ["bl\u00fce, red"]))[0].value == 0.0
    assert score(train, _said(train, ["RED, BL\u00dcE"]))[0].value == 1.0


def _stvqa(data: Path) -> Path:
    rows = [
        {
            "question_id": number,
            "file_path": path,
            "file_name": Path(path).name,
            "question": f"Question {number}?",
            "answers": ["One Way \u0130"],
            "set_name": "train",
        }
        for number, path in enumerate(("coco-text/COCO_train2014_1.jpg", "iiit_text/img_1.jpg"))
    ]
    write_json(data / "train_task_3.json", {"data": rows})
    write_picture(data / "train2014/COCO_train2014_1.jpg", size_wh=(9, 7))
    write_picture(data / "train_images/coco-text/COCO_train2014_1.jpg", size_wh=(3, 2))
    write_picture(data / "train_images/iiit_text/img_1.jpg", size_wh=(4, 4))
    return data


def test_stvqa_holds_out_the_pictures_of_the_list(tmp_path: Path) -> None:
    write_text(_stvqa(tmp_path) / "stvqa_val_images.txt", "coco-text/COCO_train2014_1.jpg\n\n")
    (val,) = read_stvqa(tmp_path, "val")
    (train,) = read_stvqa(tmp_path, "train")
    assert (val.id, train.id) == ("0", "1")
    assert val.prefix == "answer en Question 0?"
    assert val.references == {"answers": ["One Way \u0130"]}
    assert val.targets == ("one way \u0130",), "A to Z alone"
    assert (val.slices, train.slices) == ({"source": "coco-text"}, {"source": "iiit_text"})
    assert val.pictures[0].read(1000).shape == (7, 9, 3), "COCO's own picture, in full size"
    assert train.pictures[0].read(1000).shape == (4, 4, 3)


def test_stvqa_names_the_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stvqa_val_images.txt.*val_ids.PSEUDO_VAL_IMAGE_PATHS"):
        list(read_stvqa(_stvqa(tmp_path), "val"))
    write_text(tmp_path / "stvqa_val_images.txt", "\n")
    with pytest.raises(DataError, match="one image a line"):
        list(read_stvqa(tmp_path, "val"))


def _chartqa(data: Path) -> Path:
    for kind, rows in {
        "human": [("41699051.png", "How many?", "14"), ("41699051.png", "Which?", "Yes")],
        "augmented": [("two.png", "What is the share?", "5%")],
    }.items():
        table = [{"imgname": image, "query": query, "label": label} for image, query, label in rows]
        write_json(data / f"test/test_{kind}.json", table)
    write_picture(data / "test/png/41699051.png", size_wh=(6, 5))
    return data


def test_chartqa_reads_both_kinds_and_averages_them(tmp_path: Path) -> None:
    examples = list(read_chartqa(_chartqa(tmp_path), "test"))
    assert [one.id for one in examples] == ["human/0", "human/1", "augmented/0"]
    assert examples[0].prefix == "How many?"
    assert examples[0].references == "14"
    assert examples[0].pictures[0].read(1000).shape == (5, 6, 3)
    measures = {
        one.name: one.value
        for one in ROWS["chartqa"].score(examples, _said(examples, ["14.5", "no", "0.05"]))
    }
    assert measures["relaxed_accuracy"] == 0.75, "the mean of 1/2 and 1/1, not 2/3"
    assert measures["relaxed_accuracy/human"] == 0.5
    assert measures["relaxed_accuracy/augmented"] == 1.0
    assert {key.measure for key in ROWS["chartqa"].published} <= set(measures)
    perfect = ROWS["chartqa"].score(examples, _said(examples, ["14", "Yes", "5%"]))
    assert {one.value * one.scale for one in perfect} == {100.0}


def test_chartqa_is_found_in_the_folder_of_its_archive(tmp_path: Path) -> None:
    _chartqa(tmp_path / "ChartQA Dataset")
    assert len(list(read_chartqa(tmp_path, "test"))) == 3


def test_chartqa_names_the_file_it_lacks(tmp_path: Path) -> None:
    (_chartqa(tmp_path) / "test/test_augmented.json").unlink()
    with pytest.raises(DataError, match=r"test/test_augmented\.json"):
        list(read_chartqa(tmp_path, "test"))


def _ocrvqa(data: Path, answers: list[str]) -> Path:
    book = {
        "imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.jpg",
        "questions": ["Who wrote this book?", "Is this a comedy?"],
        "answers": answers,
        "title": "Mom's Family Wall Calendar 2016",
        "split": 3,
    }
    write_json(data / "dataset.json", {"761183272": book, "1": {**book, "split": 1}})
    write_picture(data / "images/761183272.jpg", size_wh=(3, 4))
    return data


def test_ocrvqa_asks_every_question_of_a_book_of_the_split(tmp_path: Path) -> None:
    examples = list(read_ocrvqa(_ocrvqa(tmp_path, ["Sandra Boynton", "No"]), "test"))
    assert [one.id for one in examples] == ["761183272/0", "761183272/1"]
    assert examples[0].prefix == "answer en Who wrote this book?"
    assert examples[0].pictures[0].read(1000).shape == (4, 3, 3)
    assert examples[0].targets == ("Sandra Boynton",)
    said = _said(examples, ["SANDRA BOYNTON", "no"])
    assert ROWS["ocr-vqa"].score(examples, said)[0].value == 1.0


def test_ocrvqa_wants_an_answer_a_question(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"761183272: every question needs an answer, got 2"):
        list(read_ocrvqa(_ocrvqa(tmp_path, ["one"]), "test"))


@pytest.mark.parametrize(
    ("number", "prefix"), [("01", answer_prefix), ("02", bare_prefix)], ids=["vqa", "docvqa"]
)
def test_prefixes_are_those_of_training(number: str, prefix: Any) -> None:
    vector = _prompt_vector(number)
    assert prefix(vector["predictions"]["question"]) == vector["expected"]["prefix"]


def test_text_lengths_are_those_of_the_configurations() -> None:
    lengths = {name: task.asking.max_new_tokens for name, task in ROWS.items()}
    assert lengths == {
        "docvqa": 32,
        "infovqa": 48,
        "st-vqa": 48,
        "chartqa": 48,
        "ocr-vqa": 32,
        "tallyqa": 32,
        "countbenchqa": 32,
    }
    assert {task.asking.resize_method for task in ROWS.values()} == {"bilinear-antialias"}
