"""Four-bit weights: NF4 with its scales in eight bits, and products with them.

Every 64 weights share a scale, their largest magnitude, and each is one of 16 quantiles of a normal
distribution times it. 256 scales share a scale of their own in turn: 0.516 bytes a weight in all.
Bytes and numbers are those of bitsandbytes ("nf4" with double quantisation), of any size of layer.

A product widens a few rows of weights at a time, forward and backward, so that the whole matrix is
never in memory.

Axes: D input width, E output width, W weights (E*D, up to whole blocks), B blocks of 64.
Source: QLoRA arXiv 2305.14314; bitsandbytes 0.50, functional.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

BLOCK, SCALE_BLOCK = 64, 256
# fmt: off
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)
# fmt: on
# Weights that are widened at once: on a CPU they stay in its cache.
_CPU_WEIGHTS, DEVICE_WEIGHTS = 1 << 20, 1 << 26
_QUANTISED_AT_ONCE = 1 << 22


@cache
def tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the bytes stand for: of weights int64[256], each two float32; of scales float32[256]."""
    with torch.inference_mode(False):
        code = torch.tensor(CODE, dtype=torch.float32)
        pairs = torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1)
        return pairs.view(torch.int64).flatten().to(device), _scale_code().to(device)


def _scale_code() -> Tensor:
    """float32[256]: what the bytes of scales stand for, finer near zero (a sign, an exponent of
    ten and a linear fraction)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2
        values += (10.0 ** (exponent - 6) * means).tolist()
        values += (-(10.0 ** (exponent - 6)) * means).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


def _nearest(values: Tensor, code: Tensor) -> Tensor:
    """uint8: which of the ascending `code` lies nearest to each value."""
    code = code.to(values.device)
    return torch.bucketize(values, (code[1:] + code[:-1]) / 2, out_int32=True).to(torch.uint8)


def _scaled(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks float32[N, S] divided by their largest magnitudes, and these."""
    largest = blocks.abs().amax(dim=1)
    return blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None], largest


def _in_blocks(flat: Tensor, size: int) -> Tensor:
    """Values in rows of `size`, the last filled up with zeros."""
    return nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


class NF4Linear(nn.Module):
    """Stands in for a frozen `Linear`; created without values, see `quantise`.

    Gradients flow through it to its input, and to nothing in it.

    Args:
        in_features, out_features: D and E.
        bias: whether there is one; it is not quantised.
        dtype: of inputs and outputs.

    Attributes:
        packed: uint8[W/2], two weights a byte, the first in the upper half.
        scales: uint8[B].
        scale_steps: float32[B/256], largest magnitude of each 256 scales.
        scale_mean: float32[], taken off the scales before they are quantised.
        weights_at_once: how many are widened together; None follows the device.
    """

    packed: Tensor
    scales: Tensor
    scale_steps: Tensor
    scale_mean: Tensor
    weights_at_once: int | None = None

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        num_blocks = -(-in_features * out_features // BLOCK)
        self.register_buffer("packed", torch.empty(num_blocks * BLOCK // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(num_blocks, dtype=torch.uint8))
        self.register_buffer(
            "scale_steps", torch.empty(-(-num_blocks // SCALE_BLOCK), dtype=torch.float32)
        )
        self.register_buffer("scale_mean", torch.empty((), dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def num_weights(self) -> int:
        """Number of weights, without the bias."""
        return self.in_features * self.out_features

    @torch.no_grad()
    def quantise(self, weight: Tensor) -> None:
        """Take float[E, D] as the weights, on its device; a part of them is in float32 at a time.

        Raises:
            ValueError: another shape.
        """
        if weight.shape != (self.out_features, self.in_features):
            raise ValueError(f"the layer has {self.out_features, self.in_features}, {weight.shape}")
        code = torch.tensor(CODE, dtype=torch.float32)
        packed, scales = [], []
        for some in weight.detach().reshape(-1).split(_QUANTISED_AT_ONCE):
            values, largest = _scaled(_in_blocks(some.float(), BLOCK))
            halves = _nearest(values, code).view(-1, 2)
            packed.append(halves[:, 0] << 4 | halves[:, 1])
            scales.append(largest)
        self.packed = torch.cat(packed)
        exact = torch.cat(scales)
        self.scale_mean = exact.mean()
        values, self.scale_steps = _scaled(_in_blocks(exact - self.scale_mean, SCALE_BLOCK))
        self.scales = _nearest(values.flatten()[: len(exact)], _scale_code())

    def widened(self, start: int, stop: int) -> Tensor:
        """float32[stop - start, D]: some rows of the weights; they begin and end with a block."""
        first, last = (-(-row * self.in_features // BLOCK) for row in (start, stop))
        places = torch.arange(first, last, device=self.device) // SCALE_BLOCK
        pairs, scale_code = tables(self.device)
        scales = scale_code[self.scales[first:last].int()] * self.scale_steps[places]
        scales = scales + self.scale_mean
        half = BLOCK // 2
        found = pairs.index_select(0, self.packed[first * half : last * half].int())
        blocks = found.view(torch.float32).view(-1, BLOCK).mul_(scales[:, None])
        return blocks.view(-1)[: (stop - start) * self.in_features].view(-1, self.in_features)

    def steps(self) -> list[tuple[int, int]]:
        """Rows that are widened together."""
        whole = BLOCK // math.gcd(self.in_features, BLOCK)
        size = self.weights_at_once
        if size is None:
            size = _CPU_WEIGHTS if self.device.type == "cpu" else DEVICE_WEIGHTS
        step = max(1, size // (self.in_features * whole)) * whole
        return [(s, min(s + step, self.out_features)) for s in range(0, self.out_features, step)]

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., E]."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y: Tensor = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dense(self) -> Tensor:
        """float32[E, D]: the weights as a matrix."""
        return torch.cat([self.widened(*rows) for rows in self.steps()])


class _Product(torch.autograd.Function):
    """x W^T, its weights widened a few rows at a time, forward and backward.

    Products are in float32 on a CPU and in x's dtype elsewhere, rounded once to x's dtype.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        y = x.new_empty(*x.shape[:-1], layer.out_features)
        with torch.autocast(x.device.type, enabled=False):
            wide = _working(x)
            for start, stop in layer.steps():
                y[..., start:stop] = wide @ layer.widened(start, stop).to(wide.dtype).T
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer: NF4Linear = ctx.layer
        total = torch.zeros(
            *grad.shape[:-1], layer.in_features, dtype=torch.float32, device=grad.device
        )
        with torch.autocast(grad.device.type, enabled=False):
            wide = _working(grad)
            for start, stop in layer.steps():
                total += wide[..., start:stop] @ layer.widened(start, stop).to(wide.dtype)
        return total.to(grad.dtype), None


def _working(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "cpu" else x
