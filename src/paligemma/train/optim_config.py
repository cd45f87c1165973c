"""The numbers of an update rule, with big_vision's names, and the patterns that choose parameters.

Patterns are regular expressions that must match a whole big_vision name ("img/head/kernel",
"llm/layers/attn/q_einsum/w"); the first match wins.
Source: big_vision optax.py (make) and utils.py (make_mask_trees).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from paligemma.errors import ConfigError
from paligemma.train.rules import RULES
from paligemma.train.schedule import ScheduleConfig
from paligemma.weights.big_vision import big_vision_name

# Only weights of tower and projector are called kernel: the original never decays the decoder.
DEFAULT_WD_MULTS = ((".*/kernel$", 1.0),)
# What an adapter adds to a layer.
ADAPTED = r"(?=.*\.update\.)"
# What no pattern before them names, which may be nothing.
_REST = (".*", f"{ADAPTED}.*")
# Far above any rate that trains, and within float32.
_MAX_RATE = 1e6
# The original's names of the rules.
_OPTAX_NAMES = {
    "scale_by_adam": "adam",
    "big_vision.scale_by_adafactor": "adafactor",
    "big_vision.momentum_hp": "momentum",
    "big_vision.sgd": "sgd",
}

_Value = TypeVar("_Value")


class PartPattern(str):
    """A pattern that stands for what somebody named, which errors then show.

    Attributes:
        named: a part such as "vision", or a pattern that this one is made of.
    """

    named: str

    def __new__(cls, pattern: str, named: str) -> PartPattern:
        made = super().__new__(cls, pattern)
        made.named = named
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.named


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The update rule, with big_vision's names of the fields.

    Attributes:
        lr: peak learning rate.
        wd: weight decay a step where the schedule is 1, not multiplied by lr; 0 turns it off.
        grad_clip_norm: largest global norm of the trained parameters' gradients; None turns
            clipping off.
        b1: decay of Adam's first moment.
        b2: decay of Adam's second moment.
        eps: term that Adam adds to the root of the second moment.
        schedule: ordered (pattern, schedule); None freezes. The patterns must cover every
            parameter.
        lr_mults: ordered (pattern, factor on lr); 1 where no pattern matches. The weight decay is
            not multiplied.
        wd_mults: ordered (pattern, factor on wd); 0 where no pattern matches.
        rule: one of `RULES`; "adam8bit" is Adam with moments in 8 bits.
        momentum: decay of the momentum of Adafactor and of "momentum".
        average: decay of an exponential moving average of the trained parameters, which is then
            what a run leaves; None keeps none. The original has none.
    """

    lr: float
    wd: float = 0.0
    grad_clip_norm: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    schedule: tuple[tuple[str, ScheduleConfig | None], ...] = field(
        default=((".*", ScheduleConfig()),)
    )
    lr_mults: tuple[tuple[str, float], ...] = ()
    wd_mults: tuple[tuple[str, float], ...] = DEFAULT_WD_MULTS
    rule: str = "adam"
    momentum: float = 0.9
    average: float | None = None

    def __post_init__(self) -> None:
        rates = (self.lr, *(self.lr * mult for _, mult in self.lr_mults))
        if not all(0 < rate <= _MAX_RATE for rate in rates):
            raise ConfigError(
                f"lr and lr_mults must be positive, and give rates of at most {_MAX_RATE:.0e}, got "
                f"{self.lr} and {self.lr_mults}; "
                "freeze parameters with a schedule of None"
            )
        if self.wd < 0 or any(mult < 0 for _, mult in self.wd_mults):
            raise ConfigError(
                f"wd and wd_mults must not be negative, got {self.wd} and {self.wd_mults}"
            )
        if self.grad_clip_norm is not None and self.grad_clip_norm <= 0:
            raise ConfigError(
                f"grad_clip_norm must be positive or None (off), got {self.grad_clip_norm}"
            )
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1 and self.eps >= 0):
            raise ConfigError(
                "b1 and b2 must lie in [0, 1) and eps must not be negative, "
                f"got {self.b1}, {self.b2} and {self.eps}"
            )
        if self.rule not in RULES:
            raise ConfigError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if not 0 <= self.momentum < 1 or not 0 < (self.average or 0.5) < 1:
            raise ConfigError(
                "momentum must lie in [0, 1) and average in (0, 1), "
                f"got {self.momentum} and {self.average}"
            )
        for pattern, _ in (*self.schedule, *self.lr_mults, *self.wd_mults):
            _compile(pattern)

    def peak_rates(self, names: Iterable[str]) -> dict[str, float | None]:
        """The highest learning rate of each parameter by its torch name, None where it is frozen.

        Raises:
            ConfigError: as `first_matches` does.
        """
        named = {name: pattern_name(name) for name in names}
        schedules = first_matches(self.schedule, named, "schedule", required=True)
        trained = {k: one for k, one in named.items() if schedules[k][1] is not None}
        mults = first_matches(self.lr_mults, trained, "lr_mults")
        return {
            name: None
            if schedule is None
            else self.lr * schedule.mult * mults.get(name, ("", 1.0))[1]
            for name, (_, schedule) in schedules.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OptimConfig:
        """Read an update rule with big_vision's keys.

        Args:
            values: the keys; `schedule` is one schedule or an ordered list of pairs, and `optax`
                holds b1, b2, eps or momentum. Without `grad_clip_norm` nothing is clipped, as in
                the original.

        Raises:
            ConfigError: a key or the update rule is unknown, or a value breaks a rule.
        """
        values = {"grad_clip_norm": None, **values}
        rule = values.pop("optax_name", "scale_by_adam")
        if rule not in _OPTAX_NAMES:
            raise ConfigError(f"optax_name must be one of {', '.join(_OPTAX_NAMES)}, got {rule!r}")
        values |= {"rule": _OPTAX_NAMES[rule], **values.pop("optax", {})}
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"an optimiser has the keys {', '.join(sorted(known))}, optax and optax_name; "
                f"remove {', '.join(unknown)}"
            )
        if "lr" not in values:
            raise ConfigError("an optimiser needs lr, the peak learning rate; state it")
        schedule = values.get("schedule", {})
        if isinstance(schedule, Mapping):
            schedule = [(".*", schedule)]
        values["schedule"] = tuple(
            (pattern, None if one is None else ScheduleConfig.from_dict(one))
            for pattern, one in schedule
        )
        for key in {"lr_mults", "wd_mults"} & values.keys():
            values[key] = tuple((pattern, float(mult)) for pattern, mult in values[key] or ())
        # In the original 0 turns clipping off too.
        values["grad_clip_norm"] = values["grad_clip_norm"] or None
        return cls(**values)


def pattern_name(torch_name: str) -> str:
    """Return big_vision's name of a parameter, or the torch name where the original has none."""
    try:
        return big_vision_name(torch_name)
    except KeyError:
        return torch_name


def first_matches(
    rules: Sequence[tuple[str, _Value]],
    pattern_names: Mapping[str, str],
    option: str,
    *,
    required: bool = False,
) -> dict[str, tuple[str, _Value]]:
    """Map each torch name to (pattern, value) of the first rule that matches its whole name."""
    compiled = [(_compile(pattern), value) for pattern, value in rules]
    found = {}
    for name, pattern_name in pattern_names.items():
        for regex, value in compiled:
            if regex.fullmatch(pattern_name):
                found[name] = (regex.pattern, value)
                break
    uncovered = sorted({pattern_names[name] for name in pattern_names.keys() - found.keys()})
    if required and uncovered:
        raise ConfigError(
            f"{option} must cover every parameter (None freezes); "
            f"no pattern matches {', '.join(uncovered)}"
        )
    used = {pattern for pattern, _ in found.values()}
    idle = [_shown(pattern) for pattern, _ in rules if pattern not in (*used, *_REST)]
    if idle and tuple(rules) != DEFAULT_WD_MULTS:
        raise ConfigError(
            f"every pattern of {option} must decide for a parameter, {', '.join(idle)} decides for "
            "none; patterns match whole big_vision names such as llm/layers/attn/q_einsum/w"
        )
    return found


def _shown(pattern: str) -> str:
    """A pattern as it was named."""
    return repr(getattr(pattern, "named", str(pattern)))


def _compile(pattern: str) -> re.Pattern[str]:
    if _shown(pattern).startswith("'/"):
        raise ConfigError(
            f"parameter names never start with '/', got the pattern {_shown(pattern)}; leave it out"
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"a pattern must be a regular expression, got {_shown(pattern)} ({error.msg}); "
            "name a part, or mend it"
        ) from error
