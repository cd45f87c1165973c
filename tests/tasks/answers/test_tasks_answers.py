"""Questions about photographs and diagrams, read from the official files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_files import write_csv, write_json, write_picture, write_pixels, write_text

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example, Prediction
from paligemma.tasks.answers import files
from paligemma.tasks.answers.ai2d import PaintedLabel, paint_labels
from paligemma.tasks.catalog import find_task
from paligemma.tasks.reading.languages import XGQA_LANGUAGES
from paligemma.tasks.reading.prefixes import answer_prefix, choices_prefix
from paligemma.tasks.task import Task

VECTORS = Path(__file__).parents[2] / "metrics" / "data" / "metric_vectors.json"
TEN_RED = [{"answer": "red", "answer_id": k + 1, "answer_confidence": "yes"} for k in range(10)]


def read(task: Task, data: Path, split: str | None = None) -> list[Example]:
    return list(task.read(data, split or task.splits[0]))


def say(examples: list[Example], texts: list[str]) -> list[Prediction]:
    return [Prediction(id=one.id, text=text) for one, text in zip(examples, texts, strict=True)]


def figures(task: Task, examples: list[Example], texts: list[str]) -> dict[str, float]:
    return {one.name: one.value for one in task.score(examples, say(examples, texts))}


def vqav2_folder(data: Path, num: int = 3) -> Path:
    questions = [{"question_id": 1000 + k, "image_id": k, "question": f"q{k}?"} for k in range(num)]
    annotations = [
        {
            "question_id": 1000 + k,
            "image_id": k,
            "answers": TEN_RED,
            "answer_type": "yes/no" if k == 0 else "other",
            "question_type": "what",
            "multiple_choice_answer": "red",
        }
        # Annotations need not stand in the order of the questions.
        for k in reversed(range(num))
    ]
    write_json(data / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(data / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    for k in range(num):
        write_picture(data / "val2014" / f"COCO_val2014_{k:012d}.jpg")
    return data


@pytest.mark.parametrize(
    "vector",
    [v for v in json.loads(VECTORS.read_text())["vectors"] if v["metric"] == "prompt_format"],
    ids=lambda v: v["params"]["task"],
)
def test_prompts_are_those_of_training(vector: dict[str, Any]) -> None:
    given, wanted = vector["predictions"], vector["expected"]["prefix"]
    if vector["params"]["task"] == "vqav2":
        assert answer_prefix(given["question"]) == wanted
    elif vector["params"]["task"] == "nlvr2":
        assert answer_prefix(given["sentence"]) == wanted
    elif vector["params"]["task"] == "ai2d":
        assert choices_prefix(given["question"], given["possible_answers"]) == wanted
        assert "en  What" in wanted
        assert "Snake \t Grass" in wanted
    else:
        assert not wanted.startswith("answer en")


def test_vqav2_joins_questions_answers_and_pictures(tmp_path: Path) -> None:
    task = find_task("vqav2")
    examples = read(task, vqav2_folder(tmp_path), "val")
    assert [one.id for one in examples] == ["1000", "1001", "1002"]
    assert examples[1].prefix == "answer en q1?"
    assert examples[1].references == {"answers": ["red"] * 10, "answer_type": "other"}
    assert examples[1].targets == ("red",) * 10
    assert examples[0].slices == {"answer_type": "yes/no"}
    assert examples[2].pictures[0].read(1000).shape == (8, 12, 3)
    assert figures(task, examples, ["red"] * 3) == {
        "accuracy": 1.0,
        "accuracy/yesno": 1.0,
        "accuracy/other": 1.0,
    }
    # All ten annotators agree, so that nothing is cleaned up.
    assert figures(task, examples, ["Red", "red", "red"])["accuracy"] == pytest.approx(2 / 3)


def test_minival_is_the_end_of_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.MINIVAL_QUESTIONS == 10_240
    monkeypatch.setattr(files, "MINIVAL_QUESTIONS", 2)
    examples = read(find_task("vqav2"), vqav2_folder(tmp_path), "minival")
    assert [one.id for one in examples] == ["1001", "1002"]
    before = read(find_task("vqav2"), vqav2_folder(tmp_path), "maxival")
    assert [one.id for one in before] == ["1000"]


def test_shuffled_minival_is_the_end_by_the_hash_of_the_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MD5 of "validation1000" .. "validation1002" begin with b7, 71 and cb.
    monkeypatch.setattr(files, "MINIVAL_QUESTIONS", 2)
    examples = read(find_task("vqav2"), vqav2_folder(tmp_path), "minival-shuffled")
    assert [one.id for one in examples] == ["1000", "1002"]


@pytest.mark.parametrize("split", ["test", "test-dev"])
def test_a_test_split_is_answered_but_not_scored(tmp_path: Path, split: str) -> None:
    task = find_task("vqav2")
    name = f"v2_OpenEnded_mscoco_{split}2015_questions.json"
    question = {"question_id": 7, "image_id": 9, "question": "why?"}
    write_json(tmp_path / name, {"questions": [question]})
    write_picture(tmp_path / "test2015" / "COCO_test2015_000000000009.jpg")
    examples = read(task, tmp_path, split)
    assert split in task.server_splits
    assert examples[0].targets == ()
    with pytest.raises(DataError, match="no answers and cannot be scored here"):
        task.score(examples, say(examples, ["x"]))
    assert task.submission is not None
    assert task.submission(examples, say(examples, ["because"])) == [
        {"question_id": 7, "answer": "because"}
    ]


def test_a_question_without_annotation_is_named(tmp_path: Path) -> None:
    vqav2_folder(tmp_path)
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(
        DataError, match=r"questions\.json, questions, row 0: question 1000 must have an anno"
    ):
        read(find_task("vqav2"), tmp_path, "val")


def test_a_wrong_field_of_vqav2_is_named_with_its_row(tmp_path: Path) -> None:
    vqav2_folder(tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    table = json.loads(path.read_text())
    table["annotations"][1]["answers"] = [{"text": "red"}]
    write_json(path, table)
    with pytest.raises(
        DataError, match=r"annotations\.json, annotations, row 1, answers must .* 'answer'"
    ):
        read(find_task("vqav2"), tmp_path, "val")


def test_okvqa_gives_a_third_a_match(tmp_path: Path) -> None:
    task = find_task("okvqa")
    answers = [{"answer": a, "raw_answer": a + "s"} for a in ["dog"] * 2 + ["cat"] * 8]
    question = {"question_id": 5, "image_id": 3, "question": "what?"}
    annotation = {"question_id": 5, "image_id": 3, "question_type": "eight", "answers": answers}
    write_json(tmp_path / "OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    write_json(tmp_path / "mscoco_val2014_annotations.json", {"annotations": [annotation]})
    write_picture(tmp_path / "images" / "val2014" / "COCO_val2014_000000000003.jpg")
    examples = read(task, tmp_path)
    assert (examples[0].id, examples[0].prefix) == ("5", "answer en what?")
    assert examples[0].references == ["dog"] * 2 + ["cat"] * 8
    assert examples[0].pictures[0].read(1000).shape == (8, 12, 3)
    assert figures(task, examples, ["dog"])["accuracy"] == pytest.approx(2 / 3)
    assert figures(task, examples, ["cat"])["accuracy"] == 1.0
    assert figures(task, examples, ["Cat"])["accuracy"] == 0.0


def aokvqa_folder(data: Path, split: str = "val") -> Path:
    rows = [
        {
            "question_id": f"q{k}",
            "image_id": k,
            "question": f"what is {k}?",
            "choices": ["bus", "car", "tram", "bike"],
            "correct_choice_idx": k,
            "direct_answers": ["bus"] * 10,
            "difficult_direct_answer": k == 1,
            "rationales": [],
        }
        for k in range(2)
    ]
    if split == "test":
        for row in rows:
            del row["correct_choice_idx"], row["direct_answers"]
    write_json(data / f"aokvqa_v1p0_{split}.json", rows)
    for k in range(2):
        write_picture(data / f"{split}2017" / f"{k:012d}.jpg")
    return data


def test_aokvqa_is_asked_directly_and_by_choice(tmp_path: Path) -> None:
    direct, choices = find_task("aokvqa-da"), find_task("aokvqa-mc")
    asked = read(direct, aokvqa_folder(tmp_path))
    assert [one.id for one in asked] == ["q0", "q1"]
    assert asked[0].prefix == "answer en what is 0?"
    scores = figures(direct, asked, ["bus", "car"])
    assert (scores["accuracy"], scores["accuracy_official"]) == (0.5, 1.0)

    asked = read(choices, tmp_path)
    assert asked[1].prefix == ("answer en  what is 1? choose from: bus \t car \t tram \t bike")
    assert asked[1].targets == ("car",)
    assert asked[1].pictures[0].read(1000).shape == (8, 12, 3)
    assert figures(choices, asked, ["bus", "car"]) == {"accuracy": 1.0}
    assert figures(choices, asked, ["bus", "b"]) == {"accuracy": 0.5}


def test_aokvqa_is_submitted_in_one_file(tmp_path: Path) -> None:
    direct, choices = find_task("aokvqa-da"), find_task("aokvqa-mc")
    aokvqa_folder(tmp_path, "test")
    first, second = read(direct, tmp_path, "test"), read(choices, tmp_path, "test")
    assert direct.submission is not None
    assert choices.submission is not None
    assert direct.submission(first, say(first, ["a", "b"])) == {
        "q0": {"direct_answer": "a"},
        "q1": {"direct_answer": "b"},
    }
    assert choices.submission(second, say(second, ["bus", "car"])) == {
        "q0": {"multiple_choice": "bus"},
        "q1": {"multiple_choice": "car"},
    }
    for task, examples in ((direct, first), (choices, second)):
        with pytest.raises(DataError, match="cannot be scored here"):
            task.score(examples, say(examples, ["a", "b"]))


def test_a_choice_that_is_none_is_named(tmp_path: Path) -> None:
    aokvqa_folder(tmp_path)
    path = tmp_path / "aokvqa_v1p0_val.json"
    rows = json.loads(path.read_text())
    rows[1]["correct_choice_idx"] = 4
    write_json(path, rows)
    with pytest.raises(DataError, match=r"row 1: correct_choice_idx must be 0\.\.3, got 4"):
        read(find_task("aokvqa-mc"), tmp_path)


def gqa_rows(answer: str = "yes") -> dict[str, Any]:
    row = {"imageId": "n1", "question": "Is it red?", "answer": answer, "fullAnswer": "It is."}
    return {"201": row, "202": {**row, "question": "Is it blue?", "answer": "no"}}


def test_gqa_compares_exactly(tmp_path: Path) -> None:
    task = find_task("gqa")
    write_json(tmp_path / "testdev_balanced_questions.json", gqa_rows())
    write_picture(tmp_path / "images" / "n1.jpg")
    examples = read(task, tmp_path)
    assert [(one.id, one.prefix) for one in examples] == [
        ("201", "answer en Is it red?"),
        ("202", "answer en Is it blue?"),
    ]
    assert figures(task, examples, ["yes", "no"]) == {"accuracy": 1.0}
    assert figures(task, examples, ["Yes", "no "]) == {"accuracy": 0.0}
    assert examples[0].pictures[0].read(1000).shape == (8, 12, 3)


def test_xgqa_averages_languages_with_and_without_english(tmp_path: Path) -> None:
    task = find_task("xgqa")
    for language in XGQA_LANGUAGES:
        name = f"testdev_balanced_questions_{language}.json"
        write_json(tmp_path / "annotations" / "zero_shot" / name, gqa_rows())
    write_picture(tmp_path / "images" / "n1.jpg")
    examples = read(task, tmp_path)
    assert len(examples) == 16
    assert examples[0].id == "201_bn"
    assert {one.unit for one in examples} == {"201", "202"}
    # English is right throughout, the other languages in one question of two.
    texts = [
        one.references if one.slices["language"] == "en" or one.unit == "201" else "?"
        for one in examples
    ]
    scores = figures(task, examples, texts)
    assert scores["accuracy/en"] == 1.0
    assert scores["accuracy/ru"] == 0.5
    assert scores["accuracy/avg7"] == pytest.approx(0.5)
    assert scores["accuracy/avg8"] == pytest.approx(4.5 / 8)
    assert next(iter(scores)) == task.headline == "accuracy/avg7"
    assert "accuracy" not in scores
    only = read(task, tmp_path, "testdev_de")
    assert [one.id for one in only] == ["201_de", "202_de"]
    # One language is no average of eight.
    assert set(figures(task, only, ["yes", "no"])) == {"accuracy", "accuracy/de"}
    with pytest.raises(ConfigError, match="xgqa has the splits testdev, testdev_bn"):
        read(task, tmp_path, "testdev_fr")


def test_textvqa_pictures_are_turned_upright(tmp_path: Path) -> None:
    task = find_task("textvqa")
    row = {
        "question_id": 34602,
        "image_id": "0a1b",
        "question": "brand?",
        "answers": ["nokia"] * 10,
    }
    other = {**row, "question_id": 34603, "image_id": "0c2d"}
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row, other]})
    pixels = np.zeros((2, 3, 3), np.uint8)
    for name in ("0a1b", "0c2d"):
        # The metadata says the same turn as the id file; it must not come on top of it.
        write_pixels(tmp_path / "train_images" / f"{name}.jpg", pixels, orientation=6)
    upright = read(task, tmp_path)
    assert [one.pictures[0].read(100).shape for one in upright] == [(2, 3, 3), (2, 3, 3)]
    write_csv(
        tmp_path / "train-images-boxable-with-rotation.csv",
        ["ImageID", "Subset", "Rotation"],
        [["0a1b", "train", "270.0"], ["0c2d", "train", ""]],
    )
    examples = read(task, tmp_path)
    assert [one.pictures[0].read(100).shape for one in examples] == [(3, 2, 3), (2, 3, 3)]
    assert examples[0].references == {"answers": ["nokia"] * 10, "answer_type": "other"}
    assert figures(task, examples, ["nokia", "nokia"]) == {"accuracy": 1.0}


def test_a_rotation_that_is_no_quarter_turn_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "TextVQA_0.5.1_test.json", {"data": []})
    write_csv(tmp_path / "test_images" / "rotation.csv", ["ImageID", "Rotation"], [["a", "45"]])
    with pytest.raises(DataError, match=r"rotation\.csv, row 2: Rotation must be a multiple of 90"):
        read(find_task("textvqa"), tmp_path, "test")


def test_vizwiz_leaves_empty_answers_out(tmp_path: Path) -> None:
    task = find_task("vizwiz")
    answers = [{"answer": a, "answer_confidence": "yes"} for a in ["", "soup", "soup", "can"]]
    row = {
        "image": "VizWiz_val_00000000.jpg",
        "question": "What's this?",
        "answers": answers,
        "answer_type": "other",
        "answerable": 1,
    }
    write_json(tmp_path / "annotations" / "val.json", [row])
    write_picture(tmp_path / "val" / row["image"])
    examples = read(task, tmp_path)
    assert examples[0].id == "VizWiz_val_00000000.jpg"
    assert examples[0].references == ["soup", "soup", "can"]
    assert figures(task, examples, ["soup"]) == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy_any": 1.0,
    }
    write_json(tmp_path / "annotations" / "test.json", [{"image": "t.jpg", "question": "q"}])
    write_picture(tmp_path / "test" / "t.jpg")
    asked = read(task, tmp_path, "test")
    assert task.submission is not None
    assert task.submission(asked, say(asked, ["x"])) == [{"image": "t.jpg", "answer": "x"}]


def ai2d_folder(data: Path) -> Path:
    question = {
        "answerTexts": ["Snake", "Grass"],
        "correctAnswer": 0,
        "abcLabel": False,
        "questionId": "0.png-0",
    }
    lettered = {**question, "abcLabel": True, "questionId": "0.png-1", "correctAnswer": 1}
    table = {"imageName": "0.png", "questions": {"What eats frogs?": question, "A is?": lettered}}
    other = {"imageName": "1.png", "questions": {"Why?": {**question, "questionId": "1.png-0"}}}
    label = {"rectangle": [[4, 2], [24, 16]], "replacementText": "A", "value": "frog"}
    for name, rows in (("0.png", table), ("1.png", other)):
        write_json(data / "ai2d" / "questions" / f"{name}.json", rows)
        write_json(data / "ai2d" / "annotations" / f"{name}.json", {"text": {"T0": label}})
        write_picture(data / "ai2d" / "images" / name, size_wh=(40, 30), color=(9, 9, 200))
    write_text(data / "ai2d_test_ids.csv", "0\n7\n")
    return data


def test_ai2d_paints_letters_only_where_the_question_asks_for_them(tmp_path: Path) -> None:
    task = find_task("ai2d")
    examples = read(task, ai2d_folder(tmp_path))
    assert [one.id for one in examples] == ["0.png-0", "0.png-1"]
    assert examples[0].prefix == "answer en  What eats frogs? choose from: Snake \t Grass"
    assert [one.references for one in examples] == ["Snake", "Grass"]
    plain, painted = (one.pictures[0].read(10_000) for one in examples)
    assert plain[10, 10].tolist() == [9, 9, 200]
    # The box holds its lower right corner, and nothing beyond it is touched.
    assert painted[16, 24].tolist() == [255, 255, 255]
    assert painted[17, 24].tolist() == [9, 9, 200]
    assert painted[2:17, 4:25].min() == 0
    assert figures(task, examples, ["Snake", "Grass"]) == {"accuracy": 1.0}
    assert figures(task, examples, ["snake", "Grass"]) == {"accuracy": 0.5}
    assert [one.id for one in read(task, tmp_path, "train")] == ["1.png-0"]


def test_a_letter_is_as_large_as_its_box_and_stays_in_it() -> None:
    image = np.full((60, 80, 3), 77, np.uint8)
    box = PaintedLabel(corners_xy=((10, 5), (50, 45)), text="B")
    dark = np.argwhere(paint_labels(image, (box,))[..., 0] < 60)
    (top, left), (low, right) = dark.min(axis=0), dark.max(axis=0)
    assert top >= 5
    assert low <= 45
    assert left >= 10
    assert right <= 50
    assert low - top > 20
    # Centred along x, within what the letter's own side bearings add.
    assert abs((left + right) / 2 - 30) <= 3
    assert image.min() == 77


def test_a_rectangle_that_is_none_is_named(tmp_path: Path) -> None:
    ai2d_folder(tmp_path)
    label = {"rectangle": [[4, 2]], "replacementText": "A"}
    write_json(tmp_path / "ai2d" / "annotations" / "0.png.json", {"text": {"T0": label}})
    with pytest.raises(DataError, match=r"0\.png\.json, T0: rectangle must be two corners"):
        read(find_task("ai2d"), tmp_path)


NAMES = ["vqav2", "okvqa", "aokvqa-da", "aokvqa-mc", "gqa", "xgqa", "textvqa", "vizwiz", "ai2d"]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_data_folder_is_named_with_what_it_lacks(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"must hold .*, which comes from .*") as error:
        read(find_task(name), tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_split_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"has the splits .*, got 'holdout'"):
        read(find_task(name), tmp_path, "holdout")
