"""Published transfers as recipes, held against their table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from task_files import write_json, write_picture
from tiny_folder import write_random_tiny

from paligemma.cli import main
from paligemma.errors import ConfigError
from paligemma.tasks import published
from paligemma.tasks.catalog import tasks
from paligemma.tuning.recipe import Recipe

TABLE: dict[str, Any] = {
    one["id"]: one["hparams"]
    for one in json.loads(
        (Path(published.__file__).parent / "data" / "transfers.json").read_text()
    )["transfers"]
}
TRAINED = sorted(TABLE.keys() - {"pope", "vertexai_l4"})


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_has_the_published_values_of_each_resolution(name: str) -> None:
    for size, values in {**TABLE[name]["best_by_resolution"], "99": TABLE[name]["default"]}.items():
        recipe = Recipe.of_transfer(name, int(size))
        optim = recipe.optim()
        assert (optim.lr, optim.wd) == (values["lr"], values["wd"])
        assert recipe.batch_size == values["batch_size"]
        assert recipe.label_smoothing == values["label_smoothing"]
        assert recipe.dropout == values.get("llm_dropout", 0.0)
        frozen = [pattern for pattern, schedule in optim.schedule if schedule is None]
        assert ("img/.*" in frozen, "llm/.*" in frozen) == (
            values.get("freeze_vit", False),
            values.get("freeze_llm", False),
        )
        schedule = optim.schedule[-1][1]
        assert schedule is not None
        assert (schedule.decay_type, schedule.warmup_percent) == ("cosine", 0.05)
        if "epochs" in values:
            steps = max(1, round(values["epochs"] * 1000 / values["batch_size"]))
        else:
            steps = round(values["total_examples"] / values["batch_size"])
        assert recipe.num_steps(1000) == steps


def test_every_transfer_of_a_benchmark_can_be_trained_from_its_files() -> None:
    named = {one.transfer for one in tasks().values() if one.transfer and not one.is_zero_shot}
    assert named <= set(TRAINED)
    for one in tasks().values():
        if one.transfer and not one.is_zero_shot:
            assert "train" in one.splits, one.name


@pytest.mark.parametrize("name", ["pope", "vertexai_l4", "docvqua"])
def test_a_transfer_that_trains_nothing_by_adam_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)):
        Recipe.of_transfer(name, 224)


def test_the_command_follows_a_transfer_and_replaces_single_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "okvqa"
    for split in ("train", "val"):
        answers = [{"answer": "dog", "raw_answer": "dogs"}] * 10
        question = {"question_id": 5, "image_id": 3, "question": "what?"}
        annotation = {"question_id": 5, "image_id": 3, "question_type": "x", "answers": answers}
        write_json(data / f"OpenEnded_mscoco_{split}2014_questions.json", {"questions": [question]})
        write_json(data / f"mscoco_{split}2014_annotations.json", {"annotations": [annotation]})
        name = f"COCO_{split}2014_000000000003.jpg"
        write_picture(data / "images" / f"{split}2014" / name)
    base = write_random_tiny(tmp_path / "base", dtype="float32")
    words = ["train", "transfer:okvqa", "--data", data, "--model", base, "--batch-size", 1,
             "--steps", 1, "--output", tmp_path / "run", "--quiet"]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert not stopped.value.code, capsys.readouterr().err
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["task"], recipe["transfer"]) == ("okvqa", "okvqa")
    assert (recipe["lora"], recipe["lr"], recipe["batch_size"]) == (None, 5e-6, 1)
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "tokenizer.model").is_file()
