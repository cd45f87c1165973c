"""Published transfers as recipes, held against their table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from task_files import write_json, write_picture
from tiny_folder import write_random_tiny
from toy_training import small_model

from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.cli import main
from paligemma.errors import ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.tasks import published
from paligemma.tasks.catalog import tasks
from paligemma.train.optim import Optimizer
from paligemma.tuning.recipe import PART_PATTERNS, Recipe, part_table

TABLE: dict[str, Any] = {
    one["id"]: one["hparams"]
    for one in json.loads(
        (Path(published.__file__).parent / "data" / "transfers.json").read_text()
    )["transfers"]
}
TRAINED = sorted(TABLE.keys() - {"pope", "vertexai_l4"})


@pytest.fixture
def model() -> PaliGemmaModel:
    return small_model()


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


def test_parts_have_learning_rates_and_warm_ups_of_their_own(model: PaliGemmaModel) -> None:
    recipe = Recipe(
        lora=None,
        lr=1e-3,
        freeze=("embedding",),
        lr_mults=(("projector", 2.0), ("llm/layers/attn/.*", 0.5)),
        warmups=(("vision", 0.5),),
    )
    rates = {(row["part"], row["state"]): row["lr"] for row in part_table(model, recipe.optim())}
    assert rates == {
        ("vision", "trained"): 1e-3,
        ("projector", "trained"): 2e-3,
        ("embedding", "frozen"): 0.0,
        ("decoder.attention", "trained"): 5e-4,
        ("decoder.mlp", "trained"): 1e-3,
        ("decoder.norms", "trained"): 1e-3,
    }
    optimizer = Optimizer(model, recipe.optim(), total_steps=100)
    tower = PART_PATTERNS["vision"]
    assert optimizer.schedule_factors(5)[tower] == pytest.approx(0.1 * 1.0)
    assert optimizer.schedule_factors(5)[".*"] == 1.0


def test_of_an_adapter_parts_mean_its_own_parameters(model: PaliGemmaModel) -> None:
    lora = LoraConfig(rank=2, parts=("decoder", "vision"))
    attach(model, Adapter.new(model, lora))
    recipe = Recipe(lora=lora, lr=1e-3, wd=0.1, lr_mults=(("vision", 0.1),))
    rows = part_table(model, recipe.optim())
    trained = {row["part"]: row["lr"] for row in rows if row["state"] == "adapter"}
    assert trained == {
        "vision": pytest.approx(1e-4), "decoder.attention": 1e-3, "decoder.mlp": 1e-3
    }  # fmt: skip
    assert {row["lr"] for row in rows if row["state"] == "frozen"} == {0.0}
    optimizer = Optimizer(model, recipe.optim(), total_steps=10)
    down = model.text.blocks[0].attn.q.update.down
    before = down.detach().clone()
    optimizer.step()
    optimizer.step()  # the first update is the warm-up's, at rate 0
    torch.testing.assert_close(down.detach(), before * 0.9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr_mults": (("vision", 0.1),)}, "lr_mults must decide for a parameter"),
        ({"warmups": (("lmm/.*", 0.1),)}, "schedule must decide for a parameter"),
    ],
)
def test_a_part_without_a_trained_parameter_is_an_error(
    model: PaliGemmaModel, options: dict[str, Any], words: str
) -> None:
    lora = LoraConfig(rank=2)
    attach(model, Adapter.new(model, lora))
    with pytest.raises(ConfigError, match=words):
        part_table(model, Recipe(lora=lora, **options).optim())


def test_a_factor_on_a_frozen_part_is_an_error(model: PaliGemmaModel) -> None:
    recipe = Recipe(lora=None, freeze=("vision",), lr_mults=(("vision", 0.1),))
    with pytest.raises(ConfigError, match="lr_mults must decide for a parameter"):
        part_table(model, recipe.optim())


def test_the_command_trains_by_another_rule_with_rates_by_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "data" / "a.png")
    row = {"image": "a.png", "prefix": "caption en", "suffix": "a"}
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(row) + "\n")
    base = write_random_tiny(tmp_path / "base")
    words = [
        "train", "--data", tmp_path / "data", "--model", base, "--output", tmp_path / "run",
        "--full", "--steps", 3, "--batch-size", 1, "--rule", "adafactor", "--mean", "token",
        "--average", 0.5, "--compute", "bfloat16", "--lr-of", "vision=0.5",
        "--warmup-of", "projector=0.5", "--freeze", "embedding", "--quiet",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert not stopped.value.code, capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["recipe"]["rule"], report["recipe"]["compute"]) == ("adafactor", "bfloat16")
    rates = {row["part"]: row["lr"] for row in report["parts"]}
    assert rates["vision"] == rates["projector"] / 2 == 0.5e-5
    assert rates["embedding"] == 0
    words[words.index("vision=0.5")] = "vison=0.5"
    words[words.index(tmp_path / "run")] = tmp_path / "other"
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 2
    assert "'vison' decides for none" in capsys.readouterr().err
    # A part, too, is shown as it was typed, and so is what becomes part of a longer pattern.
    words[words.index("vison=0.5")] = "decoder.mlp=0.5"
    words[words.index("--full")] = "--lora"
    start = words.index("--freeze")
    del words[start : start + 2]
    for typed, said in (
        ("projector=0.5", "'projector' decides for none"),
        ("img/(=0.5", "got 'img/(' (missing ), unterminated subpattern)"),
        ("/img=0.5", "got the pattern '/img'"),
    ):
        words[words.index("--lr-of") + 1] = typed
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        assert stopped.value.code == 2
        shown = capsys.readouterr().err
        assert said in shown, shown
        assert "update" not in shown
    words[words.index("/img=0.5")] = "vison=0.5"
    words[words.index("vison=0.5")] = "0.5"
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert "joined by =" in capsys.readouterr().err
