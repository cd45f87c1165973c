"""Learning-rate schedules and durations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import reference

from paligemma.errors import ConfigError
from paligemma.train.schedule import ScheduleConfig, duration_in_steps, learning_rate_schedule


def values(total_steps: int, **config: object) -> list[float]:
    factor = learning_rate_schedule(ScheduleConfig(**config), total_steps=total_steps)
    return [factor(step) for step in range(total_steps)]


def test_cosine_starts_at_zero_with_a_warmup_and_ends_above_zero() -> None:
    # w = 2 of 6 steps: ramp 0, 1/2, then cosine of quarters.
    expected = [0.0, 0.5, 1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5]
    assert values(6, decay_type="cosine", warmup_steps=2)[:5] == pytest.approx(expected)
    assert 0.1 < values(6, decay_type="cosine", warmup_steps=2)[5] < 0.15


def test_cosine_without_a_warmup_starts_at_one() -> None:
    assert values(4, decay_type="cosine")[0] == 1.0


def test_rsqrt_is_one_at_the_end_of_its_warmup_and_a_half_after_three_timescales() -> None:
    factors = values(100, decay_type="rsqrt", warmup_steps=4, timescale=5)
    assert factors[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert factors[4 + 15] == pytest.approx(0.5)


def test_a_shift_lowers_rsqrt_from_the_first_step() -> None:
    factors = values(10, decay_type="rsqrt", warmup_steps=2, timescale=5, shift=15)
    assert factors[:3] == pytest.approx([0.0, 0.25, 0.5])


def test_a_cooldown_ends_one_ramp_step_above_zero() -> None:
    factors = values(10, decay_type="stair", cooldown_steps=4)
    assert factors == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])


def test_timescale_in_examples_is_divided_by_the_batch_size_and_rounded_to_whole_steps() -> None:
    config = ScheduleConfig(decay_type="rsqrt", timescale_examples=40)
    factor = learning_rate_schedule(config, total_steps=100, batch_size=8)
    assert factor(15) == pytest.approx(0.5)
    # 40/48 is one step, and 40/16 = 2.5 are two.
    for batch_size, timescale in ((48, 1), (16, 2)):
        factor = learning_rate_schedule(config, total_steps=100, batch_size=batch_size)
        assert factor(3 * timescale) == pytest.approx(0.5)


# Each duration of a schedule in every unit, beside a plain number and nothing at all.
DURATIONS: dict[str, list[dict[str, Any]]] = {
    "timescale": [
        {},
        {"timescale": 7.5},
        {"timescale_steps": 9},
        {"timescale_examples": 100},
        {"timescale_epochs": 0.3},
        {"timescale_percent": 0.12},
    ],
    "shift": [
        {},
        {"shift": 2.5},
        {"shift_steps": 0},
        {"shift_examples": 1},
        {"shift_epochs": 0.2},
        {"shift_percent": 0.5},
    ],
    "ramps": [{}, {"warmup_examples": 90, "cooldown_epochs": 0.5}, {"warmup_percent": 0.1}],
}


@pytest.mark.parametrize("sizes", [(60, 8, 500), (41, 48, 1000)])
def test_rsqrt_is_the_original_s_with_durations_in_any_unit(sizes: tuple[int, int, int]) -> None:
    named = dict(zip(("total_steps", "batch_size", "data_size"), sizes, strict=True))
    seen = set()
    for parts in itertools.product(*DURATIONS.values()):
        settings = {"decay_type": "rsqrt", "mult": 0.5} | parts[0] | parts[1] | parts[2]
        factor = learning_rate_schedule(ScheduleConfig.from_dict(settings), **named)
        actual = [factor(step) for step in range(sizes[0] + 1)]
        defined = [
            reference.schedule_factor(settings, step, **named) for step in range(len(actual))
        ]
        np.testing.assert_allclose(actual, defined, rtol=1e-12, atol=0, err_msg=settings)
        seen.add(tuple(actual))
    # Without a shift and with one of no steps the factors are equal.
    assert len(seen) == 6 * 5 * 3


def test_other_decays_need_no_sizes_for_the_durations_of_rsqrt() -> None:
    config = ScheduleConfig(decay_type="cosine", timescale_epochs=3, shift_examples=5)
    assert learning_rate_schedule(config, total_steps=4)(0) == 1.0
    rsqrt = dataclasses.replace(config, decay_type="rsqrt")
    with pytest.raises(ConfigError, match="timescale_epochs needs batch_size and data_size"):
        learning_rate_schedule(rsqrt, total_steps=4)


def test_linear_decay_is_polynomial_of_power_one() -> None:
    linear = values(7, decay_type="linear", end=0.1)
    assert linear == values(7, decay_type="polynomial", power=1.0, end=0.1)
    assert linear[0] == 1.0
    assert values(5, decay_type="polynomial", power=2.0)[3] == pytest.approx(0.4**2)


def test_a_stair_changes_at_the_named_step() -> None:
    factors = values(5, decay_type="stair", steps=(2, 4), mults=(0.5, 0.1))
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.1]


def test_an_empty_schedule_is_constant_as_in_the_original() -> None:
    config = ScheduleConfig.from_dict({})
    assert learning_rate_schedule(config, total_steps=3)(2) == 1.0


def test_mult_scales_and_batch_size_scaling_is_relative_to_256() -> None:
    config = ScheduleConfig(mult=0.5, scale_with_batchsize=True)
    assert learning_rate_schedule(config, total_steps=3, batch_size=512)(0) == 1.0


@pytest.mark.parametrize(
    ("durations", "steps"),
    [
        ({"x_percent": 0.05}, 2),  # 2.5 of 50 rounds to even
        ({"x_percent": 0.07}, 4),  # 3.5000000000000004
        ({"x_epochs": 0.5}, 62),  # 62.5 of 1000/8
        ({"x_examples": 1}, 1),  # 0.125 is at least one
        ({"x_epochs": 0.0}, 0),  # an explicit zero stays
        ({"x_steps": 0}, 0),
        ({"x_steps": None, "x_examples": 16}, 2),
        ({}, None),
    ],
)
def test_durations_round_half_to_even_and_to_at_least_one(
    durations: dict, steps: int | None
) -> None:
    sizes = {"total_steps": 50, "batch_size": 8, "data_size": 1000}
    assert duration_in_steps("x", durations, **sizes) == steps


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        ({"x_steps": 3, "x_percent": 0.1}, "one unit, got steps, percent"),
        ({"x_percent": 5}, r"\[0, 1\], got 5"),
        ({"x_steps": -1}, "must not be negative"),
        ({"x_epochs": 1}, "needs batch_size and data_size"),
        ({"x_examples": 1}, "needs batch_size"),
        ({"x_percent": 0.1}, "needs total_steps"),
    ],
)
def test_a_duration_that_cannot_be_converted_is_an_error(durations: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        duration_in_steps("x", durations)


def test_unknown_keys_are_rejected_by_name() -> None:
    with pytest.raises(ConfigError, match="remove warmup_step"):
        ScheduleConfig.from_dict({"decay_type": "cosine", "warmup_step": 3})


def test_linear_end_is_the_original_s_older_name_of_end() -> None:
    assert ScheduleConfig.from_dict({"decay_type": "linear", "linear_end": 0.2}).end == 0.2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"decay_type": "cosin"}, "decay_type must be one of"),
        ({"decay_type": "rsqrt", "timescale": 0}, "timescale must be positive, got 0"),
        ({"decay_type": "rsqrt", "timescale_epochs": 0}, "timescale_epochs must be positive"),
        ({"decay_type": "rsqrt", "shift": -1}, "shift must not be negative"),
        ({"decay_type": "stair", "steps": (3,)}, "one mult for each"),
        ({"decay_type": "stair", "steps": (3, 2), "mults": (1.0, 2.0)}, "ascending"),
    ],
)
def test_a_schedule_that_breaks_a_rule_is_an_error(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig.from_dict(config)


def test_the_warmup_must_be_shorter_than_the_run() -> None:
    config = ScheduleConfig(decay_type="cosine", warmup_steps=5)
    with pytest.raises(ConfigError, match="shorter than the 5 steps"):
        learning_rate_schedule(config, total_steps=5)
    # One step, to try a recipe out, is allowed.
    assert learning_rate_schedule(config, total_steps=1)(0) == 0.0


def test_a_schedule_needs_the_sizes_that_it_uses() -> None:
    with pytest.raises(ConfigError, match="needs batch_size"):
        learning_rate_schedule(ScheduleConfig(scale_with_batchsize=True), total_steps=5)
    with pytest.raises(ConfigError, match="total_steps must be at least 1"):
        learning_rate_schedule(ScheduleConfig(), total_steps=0)


def test_configs_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ScheduleConfig().mult = 2.0  # type: ignore[misc]
