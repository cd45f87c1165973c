"""AdamW with a schedule, a learning-rate factor and a decay factor by parameter name.

Patterns are regular expressions that must match a whole big_vision name ("img/head/kernel",
"llm/layers/attn/q_einsum/w"); the first match wins.
Source: big_vision optax.py (make) and trainers/proj/paligemma/train.py (update_fn).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paligemma.errors import CheckpointError, ConfigError
from paligemma.train.schedule import ScheduleConfig, learning_rate_schedule
from paligemma.weights.big_vision import big_vision_name

logger = logging.getLogger(__name__)

# Only weights of tower and projector are called kernel: the original never decays the decoder.
DEFAULT_WD_MULTS = ((".*/kernel$", 1.0),)
_MOMENTS = ("exp_avg", "exp_avg_sq")
# Pattern of the extra parameters.
_EXTRA = "extra/.*"

_Value = TypeVar("_Value")


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

    def __post_init__(self) -> None:
        if self.lr <= 0 or any(mult <= 0 for _, mult in self.lr_mults):
            raise ConfigError(
                f"lr and lr_mults must be positive, got {self.lr} and {self.lr_mults}; "
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
        for pattern, _ in (*self.schedule, *self.lr_mults, *self.wd_mults):
            _compile(pattern)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OptimConfig:
        """Read an update rule with big_vision's keys.

        Args:
            values: the keys; `schedule` is one schedule or an ordered list of pairs, and `optax`
                holds b1, b2 and eps. Without `grad_clip_norm` nothing is clipped, as in the
                original.

        Raises:
            ConfigError: a key is unknown, the update rule is not Adam, or a value breaks a rule.
        """
        values = {"grad_clip_norm": None, **values}
        rule = values.pop("optax_name", "scale_by_adam")
        if rule != "scale_by_adam":
            raise ConfigError(f"optax_name must be scale_by_adam, got {rule!r}")
        values |= values.pop("optax", {})
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


class Optimizer:
    """The update rule over one model; construction freezes parameters whose schedule is None.

    An update clips the gradients to a global norm and then subtracts

        schedule * (lr * lr_mult * adam_direction + wd * wd_mult * parameter).

    Frozen parameters have no state and no part in the norm. `torch.optim.Adam` does this with
    lr * lr_mult * schedule as the learning rate of a group, after the decay. `torch.optim.AdamW`
    would multiply by 1 - rate, and the rounding of that to float32 is several per cent of a rate
    such as 1e-6. A rate below about 5e-8 is less than a float32 parameter can take and has no
    effect. Where the schedule is 0 only the moments move.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        *,
        total_steps: int,
        batch_size: int | None = None,
        data_size: int | None = None,
        name_of: Callable[[str], str] = pattern_name,
        extra_parameters: Mapping[str, nn.Parameter] | None = None,
        extra_schedule: ScheduleConfig | None = None,
    ) -> None:
        """Sort the parameters into groups.

        Args:
            total_steps: number of updates in the whole run.
            batch_size: examples an update, which durations in examples or epochs need.
            data_size: examples an epoch, which durations in epochs need.
            name_of: maps the torch name of a parameter to the name that patterns match;
                big_vision's by default.
            extra_parameters: parameters trained beside the model; patterns match extra/NAME.
            extra_schedule: schedule of the extra parameters.

        Raises:
            ConfigError: no schedule covers a parameter, or nothing is trained.
        """
        if (extra_parameters is None) != (extra_schedule is None):
            raise ConfigError("extra_parameters and extra_schedule come together; give both")
        self.config = config
        self.steps_done = 0
        pattern_names = {name: name_of(name) for name, _ in model.named_parameters()}
        schedules = _first_matches(config.schedule, pattern_names, "schedule", required=True)
        named = dict(model.named_parameters())
        for name, parameter in (extra_parameters or {}).items():
            named[f"extra/{name}"] = parameter
            pattern_names[f"extra/{name}"] = f"extra/{name}"
            schedules[f"extra/{name}"] = (_EXTRA, extra_schedule)
        lr_mults = _first_matches(config.lr_mults, pattern_names, "lr_mults")
        wd_mults = _first_matches(config.wd_mults, pattern_names, "wd_mults") if config.wd else {}

        self._all = [p for p in named.values() if p.is_floating_point()]
        self._trained: dict[str, nn.Parameter] = {}
        self._schedules: dict[str, Callable[[int], float]] = {}
        for pattern, schedule in (*config.schedule, (_EXTRA, extra_schedule)):
            # The first of two equal patterns decides.
            if schedule is not None and pattern not in self._schedules:
                self._schedules[pattern] = learning_rate_schedule(
                    schedule, total_steps=total_steps, batch_size=batch_size, data_size=data_size
                )
        groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            pattern, schedule = schedules[name]
            parameter.requires_grad_(schedule is not None)
            if schedule is None:
                continue
            self._trained[name] = parameter
            lr_mult = lr_mults.get(name, ("", 1.0))[1]
            wd_mult = wd_mults.get(name, ("", 0.0))[1]
            groups.setdefault((pattern, lr_mult, wd_mult), []).append(parameter)
        if not groups:
            raise ConfigError("every parameter is frozen; give at least one pattern a schedule")
        self._adam = torch.optim.Adam(
            [
                {
                    "params": parameters,
                    "schedule": pattern,
                    "peak_lr": config.lr * lr_mult,
                    "decay": config.wd * wd_mult,
                }
                for (pattern, lr_mult, wd_mult), parameters in groups.items()
            ],
            lr=config.lr,
            betas=(config.b1, config.b2),
            eps=config.eps,
            fused=_can_fuse(self._trained.values()),
        )

    def schedule_factors(self, step: int | None = None) -> dict[str, float]:
        """Return the schedule factor of each pattern at a step, counted from 0.

        Args:
            step: the step; that of the next update by default.
        """
        step = self.steps_done if step is None else step
        return {pattern: factor(step) for pattern, factor in self._schedules.items()}

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, *, measure_update: bool = False) -> dict[str, Tensor]:
        """Make one update from the parameters' gradients, which stay clipped afterwards.

        Args:
            measure_update: also return update_norm, at the cost of a copy of the trained
                parameters.

        Returns:
            float32[] each, on the parameters' device: grad_norm before clipping, without frozen
            parameters; param_norm after the update, of all parameters; and update_norm.
        """
        parameters = list(self._trained.values())
        for parameter in parameters:
            if parameter.grad is None:
                # The loss does not reach it: its gradient is zero, as in the original.
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        metrics = {"grad_norm": global_norm(gradients)}
        if self.config.grad_clip_norm is not None:
            clip = (self.config.grad_clip_norm / metrics["grad_norm"]).clamp(max=1.0)
            torch._foreach_mul_(gradients, clip)
        before: list[Tensor] = [p.detach().clone() for p in parameters] if measure_update else []
        factors = self.schedule_factors()
        for group in self._adam.param_groups:
            factor = factors[group["schedule"]]
            group["lr"] = group["peak_lr"] * factor
            if group["decay"]:
                own = group["params"]
                torch._foreach_add_(own, own, alpha=-group["decay"] * factor)
        self._adam.step()
        self.steps_done += 1
        metrics["param_norm"] = global_norm(self._all)
        if measure_update:
            torch._foreach_sub_(before, [p.detach() for p in parameters])
            metrics["update_norm"] = global_norm(before)
        return metrics

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the moments by parameter name, not copied, and the counters as JSON holds them."""
        tensors = {
            f"{name}.{moment}": self._adam.state[parameter][moment]
            for name, parameter in self._trained.items()
            for moment in _MOMENTS
            if parameter in self._adam.state
        }
        return tensors, {"steps_done": self.steps_done}

    @torch.no_grad()
    def import_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Load a state that `export_state` returned.

        Args:
            tensors: the moments, which are copied.
            meta: the counters.

        Raises:
            CheckpointError: a moment is missing, unexpected or misshaped, or the number of
                updates is no count.
        """
        steps_done = meta.get("steps_done")
        if not isinstance(steps_done, int) or steps_done < 0:
            raise CheckpointError(f"steps_done must be a count of updates, got {steps_done!r}")
        shapes = {
            f"{name}.{moment}": parameter.shape
            for name, parameter in self._trained.items()
            for moment in _MOMENTS
            if steps_done
        }
        problems = [f"missing {name}" for name in sorted(shapes.keys() - tensors.keys())]
        problems += [f"unexpected {name}" for name in sorted(tensors.keys() - shapes.keys())]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ]
        if problems:
            raise CheckpointError(
                "the optimiser state must hold the moments of exactly the trained parameters; "
                f"use the configuration it was saved with: {'; '.join(problems)}"
            )
        self.steps_done = steps_done
        self._adam.state.clear()
        for name, parameter in self._trained.items() if steps_done else ():
            self._adam.state[parameter] = {
                # The fused kernel needs its counter on the parameter's device.
                "step": torch.tensor(
                    float(steps_done),
                    device=parameter.device if self._adam.defaults["fused"] else "cpu",
                ),
                **{
                    moment: torch.empty_like(parameter).copy_(tensors[f"{name}.{moment}"])
                    for moment in _MOMENTS
                },
            }


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm float32[] of all tensors together, over all shards of each.

    torch adds the squares of a whole tensor on a CPU one after the other: in float32 that is 0.4 %
    off at 50 million elements and 3 % at 200 million. Row by row every sum stays short.
    """
    squares = [
        torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        .square()
        .sum()
        for x in tensors
    ]
    norm = torch.stack(squares).sum().sqrt()
    return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).float()


def _compile(pattern: str) -> re.Pattern[str]:
    if pattern.startswith("/"):
        raise ConfigError(f"parameter names never start with '/', got the pattern {pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"a pattern must be a regular expression, got {pattern!r}: {error}"
        ) from error


def _first_matches(
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
    for pattern, _ in rules:
        if pattern not in used:
            logger.warning("%s: the pattern %r decides for no parameter", option, pattern)
    return found


def _can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused AdamW takes these parameters."""
    return all(p.is_floating_point() and p.device.type in {"cpu", "cuda"} for p in parameters)
