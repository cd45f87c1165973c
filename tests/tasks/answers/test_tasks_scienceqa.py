"""ScienceQA: its one file, the prompt of training, and shuffled options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_files import write_json, write_picture

from paligemma.errors import DataError
from paligemma.example import Prediction
from paligemma.tasks.answers.scienceqa import (
    TASKS,
    read_scienceqa,
    scienceqa_prefix,
    scienceqa_suffix,
    shuffle_options,
)

VECTORS = Path(__file__).parents[2] / "metrics" / "data" / "metric_vectors.json"
(TASK,) = TASKS


def _problems(data: Path, **row: Any) -> Path:
    base = {
        "question": "Which is a liquid?",
        "choices": ["ice", "water", "steam"],
        "answer": 1,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "physics",
        "split": "test",
    }
    row = {name: one for name, one in {**base, **row}.items() if one is not ...}
    without_picture = {**base, "image": None}
    problems = {"2": row, "3": without_picture, "4": {**base, "split": "train"}}
    write_json(data / "problems.json", problems)
    write_picture(data / "test/2/image.png", size_wh=(7, 3))
    return data


def test_the_prompt_is_that_of_training() -> None:
    vectors = json.loads(VECTORS.read_text("utf-8"))["vectors"]
    vector = next(one for one in vectors if one["id"] == "prompt_format-04")
    given, wanted = vector["predictions"], vector["expected"]
    prefix = scienceqa_prefix(given["question"], given["hint"], given["choices"])
    assert prefix == wanted["prefix"]
    assert scienceqa_suffix(given["answer"]) == wanted["suffix"]


def test_only_questions_with_a_picture_are_asked(tmp_path: Path) -> None:
    (example,) = read_scienceqa(_problems(tmp_path, hint="Think."), "test")
    assert example.id == "2"
    assert example.prefix == (
        "Question: Which is a liquid?\nContext: Think.\n"
        "Options: (A) ice, (B) water, (C) steam\nAnswer:"
    )
    assert example.targets == ("The answer is B.",)
    assert example.slices == {"subject": "natural science", "topic": "physics", "grade": "grade2"}
    assert example.pictures[0].read(1000).shape == (3, 7, 3)


def test_pictures_of_the_repository_layout_are_found(tmp_path: Path) -> None:
    _problems(tmp_path / "scienceqa")
    (tmp_path / "scienceqa/images").mkdir()
    (tmp_path / "scienceqa/test").rename(tmp_path / "scienceqa/images/test")
    (example,) = read_scienceqa(tmp_path, "test")
    assert example.pictures[0].read(1000).shape == (3, 7, 3)


def test_the_right_letter_scores_and_other_forms_do_not(tmp_path: Path) -> None:
    examples = list(read_scienceqa(_problems(tmp_path), "test"))
    for text, accuracy in (("the answer is b.", 1.0), ("The answer is A.", 0.0), ("water", 0.0)):
        measures = TASK.score(examples, [Prediction(id="2", text=text)])
        assert measures[0].name == TASK.headline
        assert measures[0].value == accuracy, text


def test_shuffled_options_keep_their_right_answer(tmp_path: Path) -> None:
    (example,) = read_scienceqa(_problems(tmp_path), "test")
    rng = np.random.default_rng(0)
    letters = set()
    for _ in range(30):
        visit = shuffle_options(example, rng)
        letter = visit.targets[0].removeprefix("The answer is ").removesuffix(".")
        assert f"({letter}) water" in visit.prefix
        assert visit.references["answer"] == visit.targets[0]
        letters.add(letter)
    assert letters == {"A", "B", "C"}
    assert example.targets == ("The answer is B.",)


@pytest.mark.parametrize("field", ["question", "choices", "answer", "hint", "split"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(DataError, match=rf"problems.json, 2 .*'{field}'"):
        list(read_scienceqa(_problems(tmp_path, **{field: ...}), "test"))


@pytest.mark.parametrize("answer", [3, -1])
def test_an_answer_must_be_one_of_the_choices(tmp_path: Path, answer: int) -> None:
    with pytest.raises(DataError, match="answer must be the index"):
        list(read_scienceqa(_problems(tmp_path, answer=answer), "test"))


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    _problems(tmp_path)
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="must hold test or images/test"):
        list(read_scienceqa(tmp_path, "test"))


def test_decoding_follows_the_configuration() -> None:
    assert (TASK.asking.text_len, TASK.asking.max_new_tokens) == (512, 512)
    assert TASK.asking.resize_method == "bilinear"
