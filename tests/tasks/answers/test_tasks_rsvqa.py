"""RSVQA: question and answer files, ranges for numbers, pictures in TIFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_files import write_json, write_picture, write_pixels

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.tasks.answers import rsvqa
from paligemma.tasks.task import Task

ROWS: dict[str, Task] = {task.name: task for task in rsvqa.TASKS}
# type, question, answer
LR = (
    ("presence", "Is a road present?", "yes"),
    ("comp", "Are there more roads than lakes?", "no"),
    ("count", "What is the number of roads?", "12"),
    ("rural_urban", "Is it a rural or an urban area", "Rural \u00c9"),
)
HR = (
    ("presence", "Is a road present?", "yes"),
    ("area", "What is the area covered by roads?", "1001m2"),
    ("count", "How many buildings are there?", "7"),
    ("comp", "Are there more roads than lakes?", "no"),
)


def _write(data: Path, stem: str, rows: tuple[tuple[str, str, str], ...]) -> Path:
    """Question k has answer 10 k; the last row of both lists is one that is not active."""
    questions: list[dict[str, Any]] = [
        {
            "id": k,
            "date_added": 1.5e9,
            "img_id": 3,
            "people_id": 0,
            "type": kind,
            "question": question,
            "answers_ids": [10 * k],
            "active": True,
        }
        for k, (kind, question, _) in enumerate(rows)
    ]
    answers: list[dict[str, Any]] = [
        {"id": 10 * k, "people_id": 0, "question_id": k, "answer": answer, "active": True}
        for k, (_, _, answer) in enumerate(rows)
    ]
    write_json(
        data / f"{stem}_questions.json", {"questions": [*questions, {"id": 99, "active": False}]}
    )
    write_json(data / f"{stem}_answers.json", {"answers": [*answers, {"id": 990, "active": False}]})
    return data


@pytest.fixture
def low(tmp_path: Path) -> Path:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    write_pixels(tmp_path / "Images_LR/3.tif", pixels)
    return _write(tmp_path, "LR_split_test", LR)


@pytest.fixture
def high(tmp_path: Path) -> Path:
    write_picture(tmp_path / "Data/3.png")
    _write(tmp_path, "USGS_split_test", HR)
    return _write(tmp_path, "USGS_split_test_phili", HR[:1] + HR[3:])


def _read(task: str, data: Path, split: str) -> list[Example]:
    return list(ROWS[task].read(data, split))


def _said(examples: list[Example], texts: list[str]) -> list[Prediction]:
    return [Prediction(id=one.id, text=text) for one, text in zip(examples, texts, strict=True)]


def test_questions_for_numbers_and_inactive_ones_are_left_out(low: Path) -> None:
    examples = _read("rsvqa-lr", low, "test")
    assert [(one.id, one.slices["type"]) for one in examples] == [
        ("0", "presence"),
        ("1", "comp"),
        ("3", "rural_urban"),
    ]
    assert examples[0].prefix == "answer en Is a road present?"
    assert examples[2].references == "rural \u00c9", "A to Z alone, as in training"
    assert examples[2].targets == ("rural \u00c9",)


def test_a_three_channel_tiff_is_read_exactly(low: Path) -> None:
    pixels = _read("rsvqa-lr", low, "test")[0].pictures[0].read(1000)
    assert np.array_equal(pixels, np.arange(60, dtype=np.uint8).reshape(4, 5, 3))


def test_counts_at_low_resolution_become_ranges(low: Path) -> None:
    answers = {one.slices["type"]: one.references for one in _read("rsvqa-lr", low, "test_all")}
    assert answers["count"] == "between 11 and 100"


def test_areas_at_high_resolution_become_ranges_and_counts_stay(high: Path) -> None:
    answers = {one.slices["type"]: one.references for one in _read("rsvqa-hr", high, "test_all")}
    assert answers == {"presence": "yes", "area": "more than 1000 m2", "count": "7", "comp": "no"}
    assert [one.slices["type"] for one in _read("rsvqa-hr", high, "test")] == ["presence", "comp"]


def test_test2_is_the_other_region(high: Path) -> None:
    assert [one.id for one in _read("rsvqa-hr", high, "test2")] == ["0", "1"]


def test_the_score_is_the_mean_over_types(low: Path) -> None:
    examples = _read("rsvqa-lr", low, "test")
    measures = ROWS["rsvqa-lr"].score(examples, _said(examples, ["YES", "yes", "rural \u00e9"]))
    assert measures[0].name == ROWS["rsvqa-lr"].headline == "mean_accuracy"
    assert measures[0].value == pytest.approx(2 / 3)
    perfect = ROWS["rsvqa-lr"].score(examples, _said(examples, ["yes", "no", "rural \u00e9"]))
    assert {one.value * one.scale for one in perfect} == {100.0}


def test_an_answer_of_another_question_is_named(low: Path) -> None:
    row = {"id": 0, "question_id": 5, "answer": "yes", "active": True}
    write_json(low / "LR_split_test_answers.json", {"answers": [row]})
    with pytest.raises(DataError, match="answer 0 belongs to question 5, not 0"):
        _read("rsvqa-lr", low, "test")
    write_json(low / "LR_split_test_answers.json", {"answers": [{**row, "id": 7}]})
    with pytest.raises(DataError, match=r"question 0: answers_ids must name a row"):
        _read("rsvqa-lr", low, "test")


def test_missing_files_and_fields_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"LR_split_val_questions\.json.*6344334"):
        _read("rsvqa-lr", tmp_path, "val")
    _write(tmp_path, "LR_split_val", LR)
    with pytest.raises(DataError, match="Images_LR"):
        _read("rsvqa-lr", tmp_path, "val")
    write_picture(tmp_path / "Images_LR/3.tif")
    write_json(tmp_path / "LR_split_val_questions.json", {"questions": [{"id": 1, "active": True}]})
    with pytest.raises(DataError, match=r"question 0 .*'type'"):
        _read("rsvqa-lr", tmp_path, "val")


def test_antialiasing_is_on_in_training_alone() -> None:
    assert {
        (task.asking.resize_method, task.asking.train_resize_method) for task in ROWS.values()
    } == {("bilinear", "bilinear-antialias")}
