"""The update of a step: schedule, learning rate, decay and frozen parameters by name.

Source: big_vision optax.py (make) and trainers/proj/paligemma/train.py (update_fn).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paligemma.errors import CheckpointError, ConfigError
from paligemma.train.optim_config import OptimConfig, first_matches, pattern_name
from paligemma.train.rules import STARTS, new_rule
from paligemma.train.schedule import ScheduleConfig, learning_rate_schedule
from paligemma.train.sharding import is_divided, own_rows

# Suffix of the averaged parameters in a stored state.
AVERAGE = "average"
# Names of the parameters of transformer blocks.
_IN_BLOCKS = re.compile(r"img/Transformer/encoderblock|llm/layers/")
# Pattern of the extra parameters.
_EXTRA = "extra/.*"


class Optimizer:
    """The update rule over one model; construction freezes parameters whose schedule is None.

    An update clips the gradients to a global norm and then subtracts

        schedule * (lr * lr_mult * adam_direction + wd * wd_mult * parameter).

    where another rule has its own direction. Frozen parameters have no state and no part in the
    norm. `torch.optim.Adam` does this with
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
        schedules = first_matches(config.schedule, pattern_names, "schedule", required=True)
        named = dict(model.named_parameters())
        for name, parameter in (extra_parameters or {}).items():
            named[f"extra/{name}"] = parameter
            pattern_names[f"extra/{name}"] = f"extra/{name}"
            schedules[f"extra/{name}"] = (_EXTRA, extra_schedule)
        trained = {k: one for k, one in pattern_names.items() if schedules[k][1] is not None}
        lr_mults = first_matches(config.lr_mults, trained, "lr_mults")
        wd_mults = first_matches(config.wd_mults, pattern_names, "wd_mults") if config.wd else {}

        self._all = [p for p in named.values() if p.is_floating_point()]
        self._trained: dict[str, nn.Parameter] = {}
        self._schedules: dict[str, Callable[[int], float]] = {}
        for pattern, schedule in (*config.schedule, (_EXTRA, extra_schedule)):
            # The first of two equal patterns decides.
            if schedule is not None and pattern not in self._schedules:
                self._schedules[pattern] = learning_rate_schedule(
                    schedule, total_steps=total_steps, batch_size=batch_size, data_size=data_size
                )
        groups: dict[tuple[str, float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            pattern, schedule = schedules[name]
            parameter.requires_grad_(schedule is not None)
            if schedule is None:
                continue
            self._trained[name] = parameter
            lr_mult = lr_mults.get(name, ("", 1.0))[1]
            wd_mult = wd_mults.get(name, ("", 0.0))[1]
            is_hidden = parameter.ndim == 2 and bool(_IN_BLOCKS.match(pattern_names[name]))
            groups.setdefault((pattern, lr_mult, wd_mult, is_hidden), []).append(parameter)
        if any(is_divided(p) for p in self._trained.values()):
            require_divisible(config.rule)
        if not groups:
            raise ConfigError("every parameter is frozen; give at least one pattern a schedule")
        self._rule = new_rule(
            config.rule,
            [
                {
                    "params": parameters,
                    "schedule": pattern,
                    "peak_lr": config.lr * lr_mult,
                    "decay": config.wd * wd_mult,
                    "is_hidden": is_hidden,
                }
                for (pattern, lr_mult, wd_mult, is_hidden), parameters in groups.items()
            ],
            betas=(config.b1, config.b2),
            eps=config.eps,
            momentum=config.momentum,
            parameters=self._trained.values(),
        )
        self._averages: dict[str, Tensor] = {}
        if config.average is not None:
            self._averages = {name: p.detach().float() for name, p in self._trained.items()}
            self._averages = {name: x.clone() for name, x in self._averages.items()}

    def schedule_factors(self, step: int | None = None) -> dict[str, float]:
        """Return the schedule factor of each pattern at a step, counted from 0.

        Args:
            step: the step; that of the next update by default.
        """
        step = self.steps_done if step is None else step
        return {pattern: factor(step) for pattern, factor in self._schedules.items()}

    @property
    def trained(self) -> list[nn.Parameter]:
        """What is trained, always in the same order."""
        return list(self._trained.values())

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._rule.zero_grad(set_to_none=True)

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
            torch._foreach_mul_(_own(gradients), clip)
        before: list[Tensor] = [p.detach().clone() for p in parameters] if measure_update else []
        factors = self.schedule_factors()
        for group in self._rule.param_groups:
            factor = factors[group["schedule"]]
            group["lr"] = group["peak_lr"] * factor
            if group["decay"]:
                own = _own(group["params"])
                torch._foreach_add_(own, own, alpha=-group["decay"] * factor)
        self._rule.step()
        self.steps_done += 1
        for name, average in self._averages.items():
            kept = self.config.average or 0.0
            average.lerp_(self._trained[name].detach().float(), 1 - kept)
        metrics["param_norm"] = global_norm(self._all)
        if measure_update:
            torch._foreach_sub_(_own(before), _own(p.detach() for p in parameters))
            metrics["update_norm"] = global_norm(before)
        return metrics

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The trained parameters hold their averages inside, if averages are kept."""
        own = {name: self._trained[name].detach().clone() for name in self._averages}
        self._assign(self._averages)
        try:
            yield
        finally:
            self._assign(own)

    def keep_averages(self) -> None:
        """Let the trained parameters hold their averages for good, if averages are kept."""
        self._assign(self._averages)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._trained[name].copy_(value)

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state by parameter name, not copied, and the counters as JSON holds them."""
        tensors = {
            f"{name}.{part}": tensor
            for name, parameter in self._trained.items()
            for part, tensor in self._rule.state.get(parameter, {}).items()
            if part != "step"
        }
        tensors |= {f"{name}.{AVERAGE}": average for name, average in self._averages.items()}
        return tensors, {"steps_done": self.steps_done}

    def _starts(self, parameter: Tensor) -> dict[str, Tensor]:
        """The parts of a parameter's state, with nothing in them.

        They lie as the parameter lies: the fused kernel pairs elements by their place in memory.
        """
        empty = torch.empty_strided(
            parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta"
        )
        return STARTS[self.config.rule](empty)

    def divided_as(self, name: str) -> Tensor | None:
        """The parameter as which a stored tensor is divided, or None where it is kept whole."""
        parameter = self._trained.get(name.rpartition(".")[0])
        return parameter if parameter is not None and is_divided(parameter) else None

    @torch.no_grad()
    def import_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Load a state that `export_state` returned.

        Args:
            tensors: the state, which is copied.
            meta: the counters.

        Raises:
            CheckpointError: a part is missing, unexpected or misshaped, or the number of updates
                is no count.
        """
        steps_done = meta.get("steps_done")
        if not isinstance(steps_done, int) or steps_done < 0:
            raise CheckpointError(f"steps_done must be a count of updates, got {steps_done!r}")
        parts: dict[str, dict[str, Tensor]] = {
            name: self._starts(parameter) if steps_done else {}
            for name, parameter in self._trained.items()
        }
        expected = {f"{name}.{part}": one for name in parts for part, one in parts[name].items()}
        expected |= {f"{name}.{AVERAGE}": average for name, average in self._averages.items()}
        problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
        problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(one.shape)}"
            for name, one in expected.items()
            if name in tensors and tensors[name].shape != one.shape
        ]
        if problems:
            raise CheckpointError(
                "the optimiser state must hold the moments of exactly the trained parameters; "
                f"use the configuration it was saved with: {'; '.join(problems)}"
            )
        self.steps_done = steps_done
        self._rule.state.clear()
        for name, average in self._averages.items():
            average.copy_(tensors[f"{name}.{AVERAGE}"])
        for name, parameter in self._trained.items() if steps_done else ():
            state = {}
            for part, one in parts[name].items():
                stored = tensors[f"{name}.{part}"]
                if is_divided(stored):
                    state[part] = stored.clone()
                else:
                    state[part] = torch.empty_like(one, device=parameter.device).copy_(stored)
            # The fused kernel needs its counter on the parameter's device.
            fused = self._rule.defaults.get("fused", False)
            device = parameter.device if fused else torch.device("cpu")
            state["step"] = torch.tensor(float(steps_done), device=device)
            self._rule.state[parameter] = state


def require_divisible(rule: str) -> None:
    """Check that an update rule needs no whole parameters.

    Raises:
        ConfigError: it does.
    """
    if rule != "adam":
        raise ConfigError(
            f"a model that is divided among processes is trained by adam, got {rule}; "
            "name --parallel replicate, or the rule adam"
        )


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm float32[] of all tensors together, over all shards of each.

    torch adds the squares of a whole tensor on a CPU one after the other: in float32 that is 0.4 %
    off at 50 million elements and 3 % at 200 million. Row by row every sum stays short.
    """
    total = torch.stack([_square(x) for x in tensors if not is_divided(x)] or [torch.zeros(())])
    norm = total.sum()
    divided = [_square(own_rows(x)) for x in tensors if is_divided(x)]
    if divided:
        norm = norm.to(divided[0].device) + _over_processes(torch.stack(divided).sum())
    return norm.sqrt().float()


def _square(x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, dtype=dtype).square().sum()


def _own(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [own_rows(x) for x in tensors]


def _over_processes(value: Tensor) -> Tensor:
    torch.distributed.all_reduce(value)
    return value
