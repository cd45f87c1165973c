"""The recipe of the embedded model: what it trains contains what the benchmark asks."""

from __future__ import annotations

import pytest

from paligemma.scenes import KINDS, SceneOptions
from paligemma.tasks.scenes.rows import ANSWER_KINDS, SCENE_KINDS, SIZE_PX
from paligemma.tiny.stages import STAGES

BENCHMARK = SceneOptions(size_px=SIZE_PX, split="heldout")


def test_low_resolution_comes_first_and_few_stages_make_the_model() -> None:
    windows = [stage.window_px for stage in STAGES]
    assert windows == sorted(windows)
    assert 2 <= len(STAGES) <= 4
    assert windows[-1] == SIZE_PX


def test_the_last_stage_draws_everything_that_the_benchmark_draws() -> None:
    scenes = STAGES[-1].scenes
    assert scenes.hw == BENCHMARK.hw
    # One object as often as six.
    assert scenes.min_objects == BENCHMARK.min_objects == 1
    assert scenes.num_objects_max >= BENCHMARK.num_objects_max
    assert scenes.num_signs_max >= BENCHMARK.num_signs_max
    assert scenes.object_scale == BENCHMARK.object_scale
    assert all(share > 0 for share in scenes.label_shares)
    assert 0 < STAGES[-1].thing_pictures < 1
    assert scenes.thing_share > 0
    assert scenes.thing_jitter >= BENCHMARK.thing_jitter


def test_the_last_stage_asks_every_kind_that_the_benchmark_asks() -> None:
    kinds = STAGES[-1].kinds
    assert kinds is not None
    assert set(kinds) <= set(KINDS)
    asked = {*SCENE_KINDS, *ANSWER_KINDS, "neighbour"} - {"answer"}
    assert asked <= {kind for kind, weight in kinds.items() if weight > 0}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.prompts_per_scene])
def test_captions_are_never_forgotten_and_every_loss_is_there_from_the_start(stage) -> None:
    assert stage.kinds is not None
    assert stage.kinds["caption"] / sum(stage.kinds.values()) >= 0.06
    losses = stage.losses
    assert min(losses.patch, losses.edge, losses.mask_token, losses.naming, losses.gathering) > 0


def test_masks_are_taught_from_the_first_stage() -> None:
    assert STAGES[0].losses.mask_token > 0
    assert STAGES[0].losses.edge > 0
