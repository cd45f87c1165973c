"""Learning-rate schedules: a factor per step, counted from 0.

Durations are given in steps, examples, epochs or as a share of the run.
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
    """Shape of one schedule, with big_vision's names of the fields.

    Durations whose names end in `_steps`, `_examples`, `_epochs` and `_percent` are alternatives:
    at most one of the four may be set, and a percentage is a share of the run in [0, 1].

    Attributes:
        decay_type: one of `DECAY_TYPES`; "stair" without `steps` is constant.
        mult: factor on the whole schedule.
        warmup_*: duration of the linear ramp from 0 at the start of the run.
        cooldown_*: duration of the linear ramp to 0 at the end of the run.
        power: exponent of the linear and the polynomial decay.
        end: factor at the end of the linear and the polynomial decay.
        timescale: timescale of the rsqrt decay in steps, where no `timescale_*` is set.
        timescale_*: the same as a duration, rounded to whole steps.
        shift: steps by which the rsqrt decay is moved, where no `shift_*` is set.
        shift_*: the same as a duration, rounded to whole steps.
        start: steps of the schedule before this run, which goes on from there: its durations
            and shares then count from the schedule's own first step.
        steps: steps at which the stair changes, ascending.
        mults: factor of the stair from each of these steps on.
        scale_with_batchsize: multiply the schedule by batch_size/256.
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
    timescale_steps: int | None = None
    timescale_examples: float | None = None
    timescale_epochs: float | None = None
    timescale_percent: float | None = None
    shift: float = 0.0
    shift_steps: int | None = None
    shift_examples: float | None = None
    shift_epochs: float | None = None
    shift_percent: float | None = None
    start: int = 0
    steps: tuple[int, ...] = ()
    mults: tuple[float, ...] = ()
    scale_with_batchsize: bool = False

    def __post_init__(self) -> None:
        if self.decay_type not in DECAY_TYPES:
            raise ConfigError(
                f"decay_type must be one of {', '.join(DECAY_TYPES)}, got {self.decay_type!r}"
            )
        for name in ("timescale", *(f"timescale_{unit}" for unit in DURATION_UNITS)):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        for name in ("shift", "start"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if len(self.steps) != len(self.mults) or list(self.steps) != sorted(self.steps):
            raise ConfigError(
                "a stair needs ascending steps and one mult for each, "
                f"got {self.steps} and {self.mults}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScheduleConfig:
        """Read a schedule with big_vision's keys.

        Raises:
            ConfigError: a key is unknown, or a value breaks a rule.
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
    """Convert the duration `{name}_steps`, `_examples`, `_epochs` or `_percent` to steps.

    The result is rounded half to even and to at least 1, but an explicit 0 stays 0; a value of
    `{name}_steps` is returned unchanged.

    Args:
        name: name of the duration, such as "warmup".
        durations: settings that may hold these keys among others; None counts as absent.
        total_steps: length of the run, which `_percent` needs.
        batch_size: examples a step, which `_examples` and `_epochs` need.
        data_size: examples an epoch, which `_epochs` needs.

    Returns:
        Number of steps, or None where no unit is set.

    Raises:
        ConfigError: two units are set, a percentage lies outside [0, 1], or a size is missing.
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
    """Build the factor as a pure function of the step.

    Args:
        total_steps: length of the run.
        batch_size: examples a step; durations in examples or epochs need it.
        data_size: examples an epoch, summed over the sources of a mixture; epochs need it.

    Returns:
        A function from the step, counted from 0, to the factor. With a warm-up the factor of
        step 0 is 0.

    Raises:
        ConfigError: total_steps is below 1, the warm-up is not shorter than the run, or a size
            is missing.
    """
    if total_steps < 1:
        raise ConfigError(f"total_steps must be at least 1, got {total_steps}")
    if batch_size is None and config.scale_with_batchsize:
        raise ConfigError("scale_with_batchsize needs batch_size; state it")
    total_steps += config.start

    def in_steps(name: str, default: float) -> float:
        steps = duration_in_steps(
            name,
            vars(config),
            total_steps=total_steps,
            batch_size=batch_size,
            data_size=data_size,
        )
        return default if steps is None else steps

    warmup, cooldown = in_steps("warmup", 0), in_steps("cooldown", 0)
    if warmup >= total_steps > 1:
        raise ConfigError(
            f"the warm-up must be shorter than the {total_steps} steps of the run, got {warmup}"
        )
    base = config.mult * (batch_size / 256 if batch_size and config.scale_with_batchsize else 1.0)

    def progress(step: int) -> float:
        return min(max((step - warmup) / max(total_steps - warmup, 1), 0.0), 1.0)

    def cosine(step: int) -> float:
        return base * 0.5 * (1.0 + math.cos(math.pi * progress(step)))

    def polynomial(step: int) -> float:
        return config.end + (base - config.end) * (1.0 - progress(step)) ** config.power

    def rsqrt(step: int) -> float:
        return base / math.sqrt(1.0 + (max(step - warmup, 0) + shift) / timescale)

    def stair(step: int) -> float:
        return base * (1.0, *config.mults)[bisect_left(config.steps, step + 1)]

    if config.decay_type == "rsqrt":
        timescale, shift = in_steps("timescale", config.timescale), in_steps("shift", config.shift)
    decay = {
        "cosine": cosine,
        "linear": polynomial,
        "polynomial": polynomial,
        "rsqrt": rsqrt,
        "stair": stair,
    }[config.decay_type]

    def factor(step: int) -> float:
        step += config.start
        value = decay(step)
        if warmup:
            value *= min(1.0, step / warmup)
        if cooldown:
            value *= min(1.0, (total_steps - step) / cooldown)
        return value

    return factor
