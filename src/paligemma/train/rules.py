"""Update rules beside Adam: 8-bit Adam, Adafactor, Muon, momentum, plain descent.

A rule is a `torch.optim.Optimizer` that subtracts lr * direction and keeps a state of plain tensors
for each parameter. `train.optim.Optimizer` clips before it and decays the weights.
Source: big_vision optax.py (scale_by_adafactor, momentum_hp); 8-bit optimizers arXiv 2110.02861;
Muon arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]
# Elements that share a scale, and the smallest parameter whose moments are worth quantising.
_BLOCK, _MIN_QUANTISED = 256, 4096
# Elements that are widened at once: 64 MB of float32.
_CHUNK = 1 << 24
# Muon: momentum, root mean square of an update at a rate of 1, and the quintic of its iteration.
_MUON_MOMENTUM, _MUON_RMS = 0.95, 0.2
_NS_A, _NS_B, _NS_C = 3.4445, -4.7750, 2.0315
# Adafactor as big_vision sets it.
_DECAY_EXPONENT, _BETA2_CAP, _SQUARE_EPS, _MIN_FACTORED = 0.8, 0.999, 1e-30, 32


class _Rule(torch.optim.Optimizer):
    """An update a parameter, with a counter of updates as torch's own Adam keeps one.

    Args:
        groups: parameters with their options; `lr` is set before every step.
    """

    def __init__(self, groups: Groups, **defaults: Any) -> None:
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(self.start(parameter), step=torch.tensor(0.0))
                state["step"] += 1
                self.update(parameter, parameter.grad, state, group)

    @classmethod
    def start(cls, parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first update."""
        raise NotImplementedError

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> None:
        """Update one parameter and its state in place."""
        raise NotImplementedError


class Adam8bit(_Rule):
    """Adam whose moments are stored in 8 bits, 256 elements to a scale, and computed in float32.

    Parameters below 4,096 elements, and those that are no multiple of 256, keep float32 moments.
    """

    @classmethod
    def start(cls, parameter: Tensor) -> dict[str, Tensor]:
        """Codes uint8[...] of 0 with scales float32[elements / 256], or moments float32[...]."""
        count = parameter.numel()
        if count < _MIN_QUANTISED or count % _BLOCK:
            return _zero_moments(parameter.float())
        state = {}
        for name, is_signed in _SIGNED.items():
            zero = _code_values(is_signed).index(0.0)
            state[name] = torch.full_like(parameter, zero, dtype=torch.uint8)
            state[f"{name}_scale"] = torch.zeros(count // _BLOCK, device=parameter.device)
        return state

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> None:
        """One update of Adam; large parameters in chunks, so that little is wide at once."""
        quantised = "exp_avg_scale" in state
        flat = {
            "p": p.view(-1),
            "grad": grad.reshape(-1),
            **{name: state[name].view(-1) for name in _SIGNED},
        }
        for start in range(0, p.numel(), _CHUNK):
            piece = {name: x[start : start + _CHUNK] for name, x in flat.items()}
            scales = slice(start // _BLOCK, (start + _CHUNK) // _BLOCK)
            moments = {}
            for name in _SIGNED:
                moments[name] = piece[name]
                if quantised:
                    scale = state[f"{name}_scale"][scales]
                    moments[name] = _widen(piece[name], scale, _codebook(name, p.device))
            wide = piece["grad"].float()
            first, second = moments["exp_avg"], moments["exp_avg_sq"]
            (b1, b2), step = group["betas"], float(state["step"])
            first.lerp_(wide, 1 - b1)
            second.mul_(b2).addcmul_(wide, wide, value=1 - b2)
            root = (second / (1 - b2**step)).sqrt_().add_(group["eps"])
            piece["p"].addcdiv_(
                first.to(p.dtype), root.to(p.dtype), value=-group["lr"] / (1 - b1**step)
            )
            if quantised:
                for name in _SIGNED:
                    codes, scale = _narrow(moments[name], _codebook(name, p.device))
                    piece[name].copy_(codes)
                    state[f"{name}_scale"][scales] = scale


class Adafactor(_Rule):
    """big_vision's Adafactor: factored second moments, no step size of its own, bf16 momentum.

    A matrix keeps the means of its squared gradients over rows and over columns. Matrices are
    factored as this package stores them, so attention weights over all heads together; the
    original factors those of each head, and the vectors of more than 31 layers, by themselves.
    """

    @classmethod
    def start(cls, parameter: Tensor) -> dict[str, Tensor]:
        """Means float32 of squared gradients, and the momentum bfloat16[...]."""
        shape, wide = parameter.shape, parameter.float()
        momentum = torch.zeros_like(parameter, dtype=torch.bfloat16)
        if not _is_factored(shape):
            return {"square": torch.zeros_like(wide), "momentum": momentum}
        rows, columns = wide.new_zeros(shape[:-1]), wide.new_zeros(*shape[:-2], shape[-1])
        return {"rows": rows, "columns": columns, "momentum": momentum}

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> None:
        """Scale the gradient by its estimated root mean square, then average with the past."""
        decay = min(_BETA2_CAP, 1 - float(state["step"]) ** -_DECAY_EXPONENT)
        wide = grad.float()
        square = wide.square() + _SQUARE_EPS
        if "square" in state:
            state["square"].lerp_(square, 1 - decay)
            direction = wide * state["square"].rsqrt()
        else:
            rows = state["rows"].lerp_(square.mean(dim=-1), 1 - decay)
            columns = state["columns"].lerp_(square.mean(dim=-2), 1 - decay)
            row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt()
            direction = wide * row_factor[..., :, None] * columns.rsqrt()[..., None, :]
        direction = state["momentum"].float().lerp_(direction, 1 - group["momentum"])
        state["momentum"].copy_(direction)
        p.sub_((direction * group["lr"]).to(p.dtype))


class Muon(_Rule):
    """Orthogonalised momentum for the matrices of the blocks, Adam for all other parameters.

    A group whose option `is_hidden` is true holds matrices of blocks. The step size is scaled so
    that an update has the root mean square of Adam's, and one learning rate serves both.
    """

    @classmethod
    def start(cls, parameter: Tensor) -> dict[str, Tensor]:
        """Moments as Adam's; of a matrix of a block only the first one moves."""
        return _zero_moments(parameter)

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> None:
        """One update of Muon with Nesterov momentum, or of Adam."""
        if not group["is_hidden"]:
            (b1, b2), step = group["betas"], float(state["step"])
            first = state["exp_avg"].lerp_(grad, 1 - b1)
            second = state["exp_avg_sq"].mul_(b2).addcmul_(grad, grad, value=1 - b2)
            root = (second / (1 - b2**step)).sqrt_().add_(group["eps"])
            p.addcdiv_(first, root, value=-group["lr"] / (1 - b1**step))
            return
        momentum = state["exp_avg"].lerp_(grad, 1 - _MUON_MOMENTUM)
        direction = orthogonalised(grad.lerp(momentum, _MUON_MOMENTUM))
        scale = _MUON_RMS * max(p.shape) ** 0.5
        p.add_(direction.to(p.dtype), alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Move all singular values of a matrix float[M, N] close to 1, by five Newton-Schulz steps.

    Computed in bfloat16 where the processor multiplies it, in float32 elsewhere.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = (x / x.norm().clamp(min=1e-7)).to(_product_dtype(x.device.type))
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_NS_B, alpha=_NS_C), x, beta=_NS_A)
    return x.T if is_tall else x


@cache
def _product_dtype(device: str) -> torch.dtype:
    if device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16


class Momentum(_Rule):
    """Descent along the decayed sum of gradients, which is kept in bfloat16."""

    @classmethod
    def start(cls, parameter: Tensor) -> dict[str, Tensor]:
        """The sum bfloat16[...]."""
        return {"momentum": torch.zeros_like(parameter, dtype=torch.bfloat16)}

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> None:
        """Add the gradient to the decayed sum, and follow it."""
        direction = state["momentum"].float().mul_(group["momentum"]).add_(grad.float())
        state["momentum"].copy_(direction)
        p.sub_((direction * group["lr"]).to(p.dtype))


class Descent(_Rule):
    """Plain gradient descent, without a state."""

    @classmethod
    def start(cls, parameter: Tensor) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> None:
        """Follow the gradient."""
        p.sub_((grad.float() * group["lr"]).to(p.dtype))


def _zero_moments(parameter: Tensor) -> dict[str, Tensor]:
    return {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}


# The state of a parameter before its first update, by name of the rule.
STARTS: Mapping[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "adam": _zero_moments,
    "adam8bit": Adam8bit.start,
    "adafactor": Adafactor.start,
    "muon": Muon.start,
    "momentum": Momentum.start,
    "sgd": Descent.start,
}
RULES = tuple(STARTS)


def new_rule(
    name: str,
    groups: Groups,
    *,
    betas: tuple[float, float],
    eps: float,
    momentum: float,
    parameters: Iterable[nn.Parameter],
) -> torch.optim.Optimizer:
    """The optimiser of a name of `RULES` over some groups of parameters.

    Args:
        betas, eps: of both Adams, and of the Adam in Muon.
        momentum: of Adafactor and momentum.
        parameters: all that is trained; where torch's fused kernel takes them, Adam uses it.
    """
    if name == "adam":
        fused = all(p.is_floating_point() and p.device.type in {"cpu", "cuda"} for p in parameters)
        return torch.optim.Adam(groups, betas=betas, eps=eps, fused=fused)
    if name == "adam8bit":
        return Adam8bit(groups, lr=0.0, betas=betas, eps=eps)
    if name == "muon":
        return Muon(groups, lr=0.0, betas=betas, eps=eps)
    if name == "adafactor":
        return Adafactor(groups, lr=0.0, momentum=momentum)
    return {"momentum": Momentum, "sgd": Descent}[name](groups, lr=0.0, momentum=momentum)


def _is_factored(shape: torch.Size) -> bool:
    return len(shape) >= 2 and min(shape[-2:]) >= _MIN_FACTORED


@cache
def _code_values(is_signed: bool) -> tuple[float, ...]:
    """256 values, ascending: seven decades below 1, each with twice the values of the one below."""
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2 ** (decade if is_signed else decade + 1)
        means = [(0.1 + 0.9 * (k + 0.5) / count) * 10.0 ** (decade - 6) for k in range(count)]
        values += [sign * x for x in means for sign in ((1, -1) if is_signed else (1,))]
    return tuple(sorted(values))


@cache
def _codebook(name: str, device: torch.device) -> Tensor:
    """float32[256]: what the codes of a moment stand for, before its scale."""
    return torch.tensor(_code_values(_SIGNED[name]), device=device)


# Whether a moment of Adam has a sign.
_SIGNED = {"exp_avg": True, "exp_avg_sq": False}


def _widen(codes: Tensor, scale: Tensor, codebook: Tensor) -> Tensor:
    """float32[N] of codes uint8[N] and their scales float32[N / 256]."""
    return (codebook[codes.int()].view(-1, _BLOCK) * scale[:, None]).view(-1)


def _narrow(values: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes uint8[N] of values float32[N], and the largest of each 256 as scale."""
    blocks = values.view(-1, _BLOCK)
    scale = blocks.abs().amax(dim=1)
    between = (codebook[1:] + codebook[:-1]) / 2
    relative = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return torch.bucketize(relative, between, out_int32=True).to(torch.uint8).view(-1), scale
