"""The recipe of the embedded model: what it trains contains what the benchmark asks."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from paligemma.scenes import KINDS, SceneOptions
from paligemma.tasks.scenes.rows import SCENE_KINDS, SIZE_PX, THING_ANSWER_KINDS, THING_SHARE
from paligemma.tiny.stages import BUDGETS, STAGES, Stage
from paligemma.weights.catalog import embedded_folder

BENCHMARK = SceneOptions(size_px=SIZE_PX, split="heldout", thing_share=THING_SHARE)
budgets = pytest.mark.parametrize("stages", BUDGETS.values(), ids=BUDGETS)


@budgets
def test_low_resolution_comes_first_and_few_stages_make_the_model(
    stages: tuple[Stage, ...],
) -> None:
    windows = [stage.window_px for stage in stages]
    assert windows == sorted(windows)
    assert 2 <= len(stages) <= 4
    assert windows[-1] == SIZE_PX


def test_every_budget_has_the_same_stages_in_other_steps() -> None:
    of_budget = {"total_steps", "num_scenes", "prompts_per_scene", "lr"}
    first, *others = (
        [
            {name: value for name, value in asdict(stage).items() if name not in of_budget}
            for stage in stages
        ]
        for stages in BUDGETS.values()
    )
    assert others
    assert all(one == first for one in others)


@budgets
def test_held_out_handwriting_and_art_styles_are_never_trained(stages: tuple[Stage, ...]) -> None:
    assert {(stage.scenes.split, stage.scenes.things) for stage in stages} == {("train", "known")}
    assert BENCHMARK.split == "heldout"


@budgets
def test_the_last_stage_draws_everything_that_the_benchmark_draws(
    stages: tuple[Stage, ...],
) -> None:
    scenes = stages[-1].scenes
    assert scenes.hw == BENCHMARK.hw
    for name in ("side_range_px", "thing_range_px", "cap_range_px"):
        (low, high), (asked_low, asked_high) = getattr(scenes, name), getattr(BENCHMARK, name)
        assert low <= asked_low < asked_high <= high
    # One object as often as six.
    assert scenes.min_objects == BENCHMARK.min_objects == 1
    assert scenes.num_objects_max >= BENCHMARK.num_objects_max
    assert scenes.num_signs_max >= BENCHMARK.num_signs_max
    assert scenes.object_scale == BENCHMARK.object_scale
    assert all(share > 0 for share in scenes.label_shares)
    # Pictures with things and without.
    assert 0 < stages[-1].thing_pictures < 1
    assert scenes.thing_share >= BENCHMARK.thing_share
    assert scenes.thing_jitter >= BENCHMARK.thing_jitter


@budgets
def test_the_last_stage_asks_every_kind_that_the_benchmark_asks(
    stages: tuple[Stage, ...],
) -> None:
    kinds = stages[-1].kinds
    assert kinds is not None
    assert set(kinds) <= set(KINDS)
    asked = {*SCENE_KINDS, *THING_ANSWER_KINDS} - {"answer"}
    assert asked <= {kind for kind, weight in kinds.items() if weight > 0}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.prompts_per_scene])
def test_captions_are_never_forgotten_and_every_loss_is_there_from_the_start(
    stage: Stage,
) -> None:
    assert stage.kinds is not None
    assert stage.kinds["caption"] / sum(stage.kinds.values()) >= 0.06
    losses = stage.losses
    assert min(losses.patch, losses.edge, losses.mask_token, losses.naming, losses.gathering) > 0


def test_masks_are_taught_from_the_first_stage() -> None:
    assert STAGES[0].losses.mask_token > 0
    assert STAGES[0].losses.edge > 0


def test_the_model_in_the_package_was_made_by_these_stages() -> None:
    record = json.loads((embedded_folder() / "training.json").read_text())
    assert len({stage["seed"] for stage in record["stages"]}) == len(STAGES)
    for stage, ran in zip(STAGES, record["stages"], strict=True):
        numbers = json.loads(json.dumps(asdict(stage)))
        assert {name: ran[name] for name in numbers} == numbers
        assert ran["curve"][-1]["step"] == stage.total_steps
        assert ran["wall_minutes"] > 1
