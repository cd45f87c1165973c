"""Training with drawn pictures, absent classes and another row budget, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.cli import main
from paligemma.errors import ConfigError, DataError
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.tasks.catalog import find_task
from paligemma.tuning.finetune import finetune
from paligemma.tuning.recipe import Recipe
from paligemma.tuning.setup import Setup, variety


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Four pictures with a rectangle each, of two classes."""
    folder = tmp_path / "boxes"
    folder.mkdir()
    lines = []
    for k, label in enumerate(("card", "cup", "card", "cup")):
        image = np.full((60, 80, 3), (20, 20, 200), np.uint8)
        image[10 + k : 40, 20:60] = (200, 20, 20)
        Image.fromarray(image).save(folder / f"{k}.png")
        suffix = f"<loc0205><loc0256><loc0700><loc0767> {label}"
        lines.append({"image": f"{k}.png", "prefix": "detect card ; cup", "suffix": suffix})
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "train.jsonl").write_text(text)
    return folder


def status(*words: Any) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def test_two_runs_with_everything_drawn_learn_the_same(boxes: Path, drawn_model: Path) -> None:
    words = ["--data", boxes, "--model", drawn_model, "--steps", 2, "--batch-size", 2]
    words += ["--augment", "flip,crop=0.6,zoom-out,colour,jpeg,resize", "--negatives", 0.5]
    words += ["--text-len", 64, "--eval-every", 0, "--quiet"]
    lines = []
    for name in ("first", "second"):
        assert status("train", *words, "--output", boxes.parent / name) == 0
        metrics = (boxes.parent / name / "train" / "metrics.jsonl").read_text().splitlines()
        lines.append([json.loads(line)["loss"] for line in metrics])
    assert lines[0] == lines[1]
    recipe = json.loads((boxes.parent / "first" / "recipe.json").read_text())
    assert recipe["augment"][1] == "crop=0.6"
    assert (recipe["negatives"], recipe["text_len"]) == (0.5, 64)


def test_rows_with_codewords_alone_are_counted_once(
    boxes: Path, drawn_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in (boxes / "train.jsonl").read_text().splitlines()]
    rows[0]["prefix"] = "segment card"
    rows[0]["suffix"] = rows[0]["suffix"].replace(" card", "<seg001>" * 16 + " card")
    (boxes / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    setup = Setup(
        model=str(drawn_model),
        processor=load_processor(str(drawn_model), LoadOptions())[0],
        task=find_task("own"),
        transfer=None,
        recipe=Recipe(augment=("flip",)),
        data=boxes,
        folder=boxes.parent / "run",
    )
    assert variety(setup, list(setup.task.read(boxes, "train"))) is not None
    said = [one.getMessage() for one in caplog.records if "codewords alone" in one.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("1 of 4 rows hold masks as codewords alone")


def test_an_unknown_policy_ends_before_anything_is_read(boxes: Path) -> None:
    words = ("train", "--data", boxes, "--augment", "spin", "--output", boxes.parent / "run")
    assert status(*words) == 2
    with pytest.raises(ConfigError, match="negatives"):
        finetune(data=boxes, output=boxes.parent / "run", negatives=2.0)


def test_the_row_budget_is_the_one_that_is_stated(boxes: Path, drawn_model: Path) -> None:
    with pytest.raises(DataError, match="may have 4 tokens"):
        finetune(str(drawn_model), data=boxes, output=boxes.parent / "run", text_len=4)


def test_data_show_draws_what_training_would(boxes: Path) -> None:
    sheets = []
    for name, more in (("plain", []), ("drawn", ["--augment", "flip=1"])):
        path = boxes.parent / f"{name}.png"
        assert status("data", "show", boxes, "-o", path, *more) == 0
        sheets.append(np.asarray(Image.open(path)))
    assert sheets[0].shape == sheets[1].shape
    assert (sheets[0] != sheets[1]).any()
