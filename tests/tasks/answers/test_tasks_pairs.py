"""Sentences about two pictures: NLVR2 and MaRVL."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from task_files import write_json_lines, write_picture

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example, Prediction
from paligemma.tasks.catalog import find_task
from paligemma.tasks.reading.languages import MARVL_LANGUAGES
from paligemma.tasks.task import Task

LEFT, RIGHT = (200, 0, 0), (0, 0, 200)


def figures(task: Task, examples: list[Example], texts: list[str]) -> dict[str, float]:
    said = [Prediction(id=one.id, text=text) for one, text in zip(examples, texts, strict=True)]
    return {one.name: one.value for one in task.score(examples, said)}


def nlvr2_row(sentence: int, label: str) -> dict[str, Any]:
    name = f"test1-0-1-{sentence}"
    return {"identifier": name, "sentence": f"Both show dog {sentence}.", "label": label}


def test_nlvr2_puts_the_left_picture_first(tmp_path: Path) -> None:
    task = find_task("nlvr2")
    write_json_lines(tmp_path / "test1.json", [nlvr2_row(0, "True"), nlvr2_row(1, "False")])
    write_picture(tmp_path / "test1" / "test1-0-1-img0.png", color=LEFT)
    write_picture(tmp_path / "test1" / "test1-0-1-img1.png", color=RIGHT)
    examples = list(task.read(tmp_path, "test"))
    assert [one.id for one in examples] == ["test1-0-1-0", "test1-0-1-1"]
    assert examples[0].prefix == "answer en Both show dog 0."
    # Sentences about one pair of pictures are resampled together.
    assert {one.unit for one in examples} == {"test1-0-1"}
    colors = [picture.read(1000)[0, 0].tolist() for picture in examples[0].pictures]
    assert colors == [list(LEFT), list(RIGHT)]
    assert figures(task, examples, ["True", "False"]) == {"accuracy": 1.0}
    assert figures(task, examples, ["true", "False"]) == {"accuracy": 0.5}


def test_nlvr2_finds_training_pictures_in_their_numbered_folders(tmp_path: Path) -> None:
    row = {"identifier": "train-5-2-0", "sentence": "s", "label": "True", "directory": 37}
    write_json_lines(tmp_path / "nlvr2" / "data" / "train.json", [row])
    for k in (0, 1):
        write_picture(tmp_path / "images" / "train" / "37" / f"train-5-2-img{k}.png")
    (example,) = find_task("nlvr2").read(tmp_path, "train")
    assert [one.read(1000).shape for one in example.pictures] == [(8, 12, 3)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "true"}, r"test1\.json, row 1: label must be True or False, got 'true'"),
        ({"identifier": "test1"}, r"identifier must be split-set-pair-sentence, got 'test1'"),
        ({"sentence": 3}, r"test1\.json, row 1: the field 'sentence' must be text, got 3"),
    ],
)
def test_an_ill_formed_row_of_nlvr2_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_json_lines(tmp_path / "test1.json", [{**nlvr2_row(0, "True"), **change}])
    write_picture(tmp_path / "test1" / "test1-0-1-img0.png")
    with pytest.raises(DataError, match=message):
        list(find_task("nlvr2").read(tmp_path, "test"))


def marvl_folder(data: Path) -> Path:
    for language in MARVL_LANGUAGES:
        rows = [
            {
                "concept": "39-Köpek",
                "language": language,
                "caption": f"{language} {k}",
                "left_img": "39-1.jpg",
                "right_img": "39-2.jpg",
                "label": k == 0,
                "id": f"{language}-{k}",
            }
            for k in range(2)
        ]
        write_json_lines(data / f"marvl-{language}.jsonl", rows)
        # Archives made on other systems hold names in the decomposed form.
        folder = data / language / "images" / unicodedata.normalize("NFD", "39-Köpek")
        write_picture(folder / "39-1.jpg", color=LEFT)
        write_picture(folder / "39-2.jpg", color=RIGHT)
    return data


def test_marvl_averages_five_languages(tmp_path: Path) -> None:
    task = find_task("marvl")
    examples = list(task.read(marvl_folder(tmp_path), "test"))
    assert len(examples) == 10
    assert examples[0].prefix == "answer en id 0"
    assert [one.references for one in examples[:2]] == ["True", "False"]
    assert examples[0].slices == {"language": "id", "concept": "39-Köpek"}
    left, right = (picture.read(1000)[0, 0].tolist() for picture in examples[9].pictures)
    assert left[0] > right[0]
    assert right[2] > left[2]
    scores = figures(task, examples, [one.references for one in examples])
    assert scores == {
        "accuracy/avg5": 1.0,
        **{f"accuracy/{one}": 1.0 for one in MARVL_LANGUAGES},
    }
    # One language wrong throughout is a fifth of the average.
    texts = ["?" if one.slices["language"] == "sw" else one.references for one in examples]
    scores = figures(task, examples, texts)
    assert scores["accuracy/avg5"] == pytest.approx(0.8)
    assert scores["accuracy/sw"] == 0.0


def test_marvl_reads_one_language_alone(tmp_path: Path) -> None:
    task = find_task("marvl")
    examples = list(task.read(marvl_folder(tmp_path), "test_tr"))
    assert [one.id for one in examples] == ["tr-0_tr", "tr-1_tr"]
    assert set(figures(task, examples, ["True", "False"])) == {"accuracy", "accuracy/tr"}
    with pytest.raises(ConfigError, match=r"marvl has the splits test, test_id, .*, got 'test_en'"):
        list(task.read(tmp_path, "test_en"))


@pytest.mark.parametrize("name", ["nlvr2", "marvl"])
def test_missing_pair_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"must hold .*, which comes from .*"):
        list(find_task(name).read(tmp_path, "test"))
