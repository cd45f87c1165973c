"""The stages of pre-training, the one-size recipe and the published sweep of learning rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paligemma.cli import main
from paligemma.config import RELEASES, release_config
from paligemma.errors import ConfigError
from paligemma.tasks import published
from paligemma.train.schedule import learning_rate_schedule
from paligemma.tuning.setup import recipe_of
from paligemma.tuning.stages import LR_FACTORS, OURS, RECIPES, swept_lr

TABLE: dict[str, Any] = json.loads(
    (Path(published.__file__).parent / "data" / "transfers.json").read_text()
)
TEXTS = {"3b": "gemma2_2b", "10b": "gemma2_9b", "28b": "gemma2_27b"}


def run(*words: str | Path | int | float) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def test_the_stages_have_the_published_values() -> None:
    stated = {"stage1": (224, 10**9, 128), "stage2a": (448, 5 * 10**7, 512)}
    stated["stage2b"] = (896, 10**7, 512)
    for name, values in stated.items():
        table = RECIPES[name]
        assert tuple(table[key].value for key in ("size_px", "examples", "text_len")) == values
        assert OURS not in {table[key].source for key in ("size_px", "examples", "text_len", "lr")}
        ours = ("batch_size", "timescale", "warmup_percent", "warmups", "wd")
        assert {table[key].source for key in ours} == {OURS}
        recipe = recipe_of({}, named=name)
        assert (recipe.lora, recipe.freeze) == (None, ())
        assert recipe.steps == values[1] // recipe.batch_size


def test_the_peak_of_a_stage_falls_with_the_size_of_paligemma_2() -> None:
    rates = {}
    for one in RELEASES:
        rates[one.family, one.size] = recipe_of(
            {}, named="stage2a", model=release_config(one.text, 448)
        ).lr
    assert rates == {
        ("PaliGemma", "3b"): 2e-5,
        ("PaliGemma 2", "3b"): 1e-5,
        ("PaliGemma 2", "10b"): 5e-6,
        ("PaliGemma 2", "28b"): 5e-6,
    }
    assert set(LR_FACTORS) == set(TEXTS)


def test_the_simple_recipe_is_the_published_one() -> None:
    simple, recipe = TABLE["stage3_simple_recipe"], recipe_of({}, named="simple")
    assert (recipe.lr, recipe.batch_size) == (simple["lr"], simple["batch_size"])
    assert (recipe.dropout, recipe.label_smoothing) == (
        simple["llm_dropout"],
        simple["label_smoothing"],
    )
    assert (recipe.wd, bool(recipe.freeze)) == (simple["weight_decay"], simple["freeze"])
    assert (recipe.epochs, recipe.lora) == (10, None)


def test_the_schedule_goes_on_from_stage_to_stage_for_every_part() -> None:
    ends: dict[str, float] = {}
    for name in ("stage1", "stage2a", "stage2b"):
        recipe = recipe_of({}, named=name)
        assert recipe.steps is not None
        for part, schedule in recipe.optim().schedule:
            assert schedule is not None
            factor = learning_rate_schedule(schedule, total_steps=recipe.steps)
            if name == "stage1":
                assert factor(0) == 0.0
            else:  # neither warmed up again nor moved
                assert factor(0) == pytest.approx(ends[part], rel=1e-5)
                assert factor(0) > factor(1) > factor(recipe.steps - 1) > 0
            ends[part] = factor(recipe.steps - 1)
    assert len(ends) == 2


def test_the_tower_warms_up_more_slowly_than_the_rest() -> None:
    recipe = recipe_of({}, named="stage1")
    (_, tower), (_, rest) = recipe.optim().schedule
    assert tower is not None
    assert rest is not None
    assert recipe.steps is not None
    slow, fast = (learning_rate_schedule(one, total_steps=recipe.steps) for one in (tower, rest))
    peak = round(recipe.warmup_percent * recipe.steps)
    assert fast(peak) == pytest.approx(1.0)
    assert slow(peak) == pytest.approx(0.1, abs=1e-4)


def test_options_replace_values_and_another_batch_keeps_the_examples() -> None:
    recipe = recipe_of({"batch_size": 1024, "wd": 0.1, "lr": 3e-6}, named="stage2b")
    assert (recipe.steps, recipe.wd, recipe.lr) == (10**7 // 1024, 0.1, 3e-6)
    with pytest.raises(ConfigError, match="stage1, stage2a, stage2b, simple"):
        recipe_of({}, named="stage3")


@pytest.mark.parametrize("size", sorted(TEXTS))
def test_the_published_sweep_decides_the_learning_rate_of_a_size(size: str) -> None:
    config, sweep = release_config(TEXTS[size], 224), TABLE["paligemma2"]["lr_sweep"]
    for row in sweep:
        alone = [one for one in sweep if one["config"] == row["config"] and not one["zero_shot"]]
        argmax = row["argmax_lr"].get(size.upper())
        if len(alone) != 1 or row["zero_shot"] or argmax is None:
            continue
        rate, lines = swept_lr(row["config"], config)
        assert rate == min(argmax)
        assert ("of equal ones" in lines[-1]) == (len(argmax) > 1)
        assert recipe_of({"lr": "published"}, row["config"], model=config).lr == rate
        shown = row["scores_by_lr"][size.upper()]
        assert [float(word) for word in lines[1].split()[-7:]] == shown


def test_a_transfer_with_two_sets_takes_the_rate_of_the_highest_mean() -> None:
    # Means of ChartQA's two sets at 10B: 59.95, 59.75, 60.95, 59.85, 58.45, 57.2, 47.5.
    rate, lines = swept_lr("chartqa", release_config("gemma2_9b", 448))
    assert rate == 1e-6
    assert [line.split()[0] for line in lines[1:3]] == ["ChartQA", "ChartQA"]


@pytest.mark.parametrize(
    ("transfer", "text", "said"),
    [
        ("docvqa", "gemma_2b", "is none of them"),
        ("msrvtt_cap", "gemma2_27b", "no figures of msrvtt_cap for 28B"),
        (None, "gemma2_2b", "beside a transfer"),
    ],
)
def test_a_sweep_that_does_not_exist_is_named(transfer: str | None, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe_of({"lr": "published"}, transfer, model=release_config(text, 224))


def test_the_commands_train_one_stage_after_another(
    two_colours: Path, drawn_model: Path, tmp_path: Path
) -> None:
    mixture = tmp_path / "mixture.json"
    mixture.write_text(json.dumps({"sources": {"one": {"data": str(two_colours), "weight": 2}}}))
    short = ["--mixture", mixture, "--batch-size", 2, "--quiet"]
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--model", drawn_model, "--output", first, "--size", 48, "--steps", 20]
    assert not run("train", "stage1", *words, *short)
    before = json.loads((first / "recipe.json").read_text())
    assert (before["named"], before["schedule"], before["lr"]) == ("stage1", "rsqrt", 2e-5)
    stored = json.loads(next((first / "train").glob("step_*/*.json")).read_text())
    assert '"text_len": 128' in json.dumps(stored)
    words = ["--model", first / "model", "--output", second, "--size", 64, "--steps", 1]
    assert not run("train", "stage2a", *words, *short)
    after = json.loads((second / "recipe.json").read_text())
    assert (after["schedule_start"], after["text_len"], after["size_px"]) == (20, 512, 64)
    assert dict(after["warmups"]) == {"vision": 2}  # a tenth of the updates before
    config = json.loads((second / "model" / "config.json").read_text())
    assert config["vision_config"]["image_size"] == 64


def test_the_help_of_a_stage_says_what_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "stage1", "--help") == 0
    shown = capsys.readouterr().out
    for words in ("examples         1,000,000,000", "PaliGemma 2 multiplies lr", "ours"):
        assert words in shown


def test_a_row_longer_than_the_stated_length_is_left_out_and_named(
    two_colours: Path, drawn_model: Path, tmp_path: Path
) -> None:
    code = run("train", "--data", two_colours, "--model", drawn_model, "--text-len", 4,
               "--output", tmp_path / "run", "--quiet")  # fmt: skip
    assert code == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("docvq", "no published transfer is named 'docvq'; did you mean docvqa"),
        ("CoCo-cap", "did you mean coco"),
        ("zebra", "it is of "),
    ],
)
def test_a_misspelt_transfer_names_the_nearest_before_any_option(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["train", f"transfer:{name}"], ["plan", "--transfer", name]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert ("widgetcap" in shown) == (name == "zebra")
