"""Learning-rate schedules: a factor per step, counted from 0.

Durations are given in steps, examples, epochs or percent of the run, at most one of them a name.
Source: big_vision utils.py, create_learning_rate_schedule and steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from paligemma.errors import ConfigError

DECAY_TYPES = ("cosine", "rsqrt", "linear", "polynomial", "stair")
DURATION_UNITS = ("steps", "examples", "epochs", "percent")
# The original's `linear_end` is an older name of `end`.
_ALIASES = {"linear_end": "end"}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Shape of one schedule; field names are big_vision's.

    Attributes:
        decay_type: one of `DECAY_TYPES`; "stair" without `steps` is constant.
        mult: factor on the whole schedule.
        warmup_*, cooldown_*: linear ramps from 0 and to 0; percent lies in [0, 1].
        power, end: of linear and polynomial decay; `end` is the last factor.
        timescale, shift: of rsqrt, in steps.
        timescale_examples: replaces timescale by this over the batch size.
        steps, mults: of stair: from step `steps[i]` on the factor is `mults[i]`.
        scale_with_batchsize: multiply by batch_size/256.
    """

    decay_type: str = "stair"
    mult: float = 1.0
    warmup_steps: int | None = None
    warmup_examples: float | None = None
    warmup_epochs: float | None = None
    warmup_percent: float | None = None
    cooldown_steps: int | None = None
    cooldown_examples: float | None = None
    cooldown_epochs: float | None = None
    cooldown_percent: float | None = None
    power: float = 1.0
    end: float = 0.0
    timescale: float = 10_000.0
    timescale_examples: float | None = None
    shift: float = 0.0
    steps: tuple[int, ...] = ()
    mults: tuple[float, ...] = ()
    scale_with_batchsize: bool = False

    def __post_init__(self) -> None:
        if self.decay_type not in DECAY_TYPES:
            raise ConfigError(
                f"decay_type must be one of {', '.join(DECAY_TYPES)}, got {self.decay_type!r}"
            )
        if self.timescale <= 0 or (self.timescale_examples or 1) <= 0:
            raise ConfigError(f"timescale must be positive, got {self.timescale}")
        if self.shift < 0:
            raise ConfigError(f"shift must not be negative, got {self.shift}")
        if len(self.steps) != len(self.mults) or list(self.steps) != sorted(self.steps):
            raise ConfigError(
                "a stair needs ascending steps and one mult for each, "
                f"got {self.steps} and {self.mults}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScheduleConfig:
        """Read big_vision's keys.

        Raises:
            ConfigError: unknown key, or a value that breaks a rule.
        """
        known = {field.name for field in fields(cls)}
        renamed = {_ALIASES.get(key, key): value for key, value in values.items()}
        if unknown := sorted(set(renamed) - known):
            raise ConfigError(
                f"a schedule has the keys {', '.join(sorted(known))}; remove {', '.join(unknown)}"
            )
        for key in ("steps", "mults"):
            if key in renamed:
                renamed[key] = tuple(renamed[key])
        return cls(**renamed)


def duration_in_steps(
    name: str,
    durations: Mapping[str, Any],
    *,
    total_steps: int | None = None,
    batch_size: int | None = None,
    data_size: int | None = None,
) -> int | None:
    """Steps of the duration that is stored as `{name}_steps`, `_examples`, `_epochs` or `_percent`.

    Rounds half to even and to at least 1, but an explicit 0 stays 0; `_steps` is taken as it is.

    Args:
        durations: holds the keys, among others; None counts as absent.
        total_steps: length of the run, for percent.
        batch_size: examples a step, for examples and epochs.
        data_size: examples an epoch, for epochs.

    Returns:
        Number of steps, or None when no unit is given.

    Raises:
        ConfigError: two units at once, percent outside [0, 1], or the unit lacks a size it needs.
    """
    given = [unit for unit in DURATION_UNITS if durations.get(f"{name}_{unit}") is not None]
    if not given:
        return None
    if len(given) > 1:
        raise ConfigError(f"{name} must be given in one unit, got {', '.join(given)}")
    unit, value = given[0], durations[f"{name}_{given[0]}"]
    if value < 0 or (unit == "percent" and value > 1):
        raise ConfigError(
            f"{name}_{unit} must not be negative, and a percentage lies in [0, 1], got {value}"
        )
    if unit == "steps":
        return value
    needs = {
        "examples": {"batch_size": batch_size},
        "epochs": {"batch_size": batch_size, "data_size": data_size},
        "percent": {"total_steps": total_steps},
    }[unit]
    if missing := [size for size, number in needs.items() if not number]:
        raise ConfigError(
            f"{name}_{unit} needs {' and '.join(missing)}; state it or give {name}_steps"
        )
    # The grouping of the original: it decides which way an exact half falls.
    if unit == "examples":
        steps = value / batch_size
    elif unit == "epochs":
        steps = value * (data_size / batch_size)  # type: ignore[operator]
    else:
        steps = value * total_steps
    return max(1, round(steps)) if steps else 0


def learning_rate_schedule(
    config: ScheduleConfig,
    *,
    total_steps: int,
    batch_size: int | None = None,
    data_size: int | None = None,
) -> Callable[[int], float]:
    """The factor as a pure function of the step.

    Args:
        total_steps: length of the run.
        batch_size: examples a step; needed by durations in examples or epochs.
        data_size: examples an epoch, summed over the sources of a mixture; needed by epochs.

    Returns:
        step (from 0) -> factor. With a warm-up the factor of step 0 is 0.

    Raises:
        ConfigError: total_steps below 1, warm-up not shorter than the run, or a missing size.
    """
    if total_steps < 1:
        raise ConfigError(f"total_steps must be at least 1, got {total_steps}")
    warmup, cooldown = (
        duration_in_steps(
            name,
            vars(config),
            total_steps=total_steps,
            batch_size=batch_size,
            data_size=data_size,
        )
        or 0
        for name in ("warmup", "cooldown")
    )
    if warmup >= total_steps > 1:
        raise ConfigError(
            f"the warm-up must be shorter than the {total_steps} steps of the run, got {warmup}"
        )
    if batch_size is None and (config.timescale_examples or config.scale_with_batchsize):
        raise ConfigError("timescale_examples and scale_with_batchsize need batch_size; state it")
    decay = _decay(config, total_steps, warmup, batch_size or 1)

    def factor(step: int) -> float:
        value = decay(step)
        if warmup:
            value *= min(1.0, step / warmup)
        if cooldown:
            value *= min(1.0, (total_steps - step) / cooldown)
        return value

    return factor


def _decay(
    config: ScheduleConfig, total_steps: int, warmup: int, batch_size: int
) -> Callable[[int], float]:
    """The factor without the linear ramps at both ends."""
    base = config.mult * (batch_size / 256 if config.scale_with_batchsize else 1.0)
    timescale = (
        config.timescale
        if config.timescale_examples is None
        else config.timescale_examples / batch_size
    )

    def progress(step: int) -> float:
        return min(max((step - warmup) / max(total_steps - warmup, 1), 0.0), 1.0)

    def cosine(step: int) -> float:
        return base * 0.5 * (1.0 + math.cos(math.pi * progress(step)))

    def polynomial(step: int) -> float:
        return config.end + (base - config.end) * (1.0 - progress(step)) ** config.power

    def rsqrt(step: int) -> float:
        return base / math.sqrt(1.0 + (max(step - warmup, 0) + config.shift) / timescale)

    def stair(step: int) -> float:
        return base * (1.0, *config.mults)[bisect_left(config.steps, step + 1)]

    return {
        "cosine": cosine,
        "linear": polynomial,
        "polynomial": polynomial,
        "rsqrt": rsqrt,
        "stair": stair,
    }[config.decay_type]
