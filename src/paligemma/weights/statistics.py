"""Statistics of weights, and what looks wrong with them."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1 << 24
# A layer whose spread differs this much from the same tensor's median over layers is pointed out.
OUTLIER_FACTOR = 10.0
_MIN_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """Of one tensor; mean, std and largest magnitude are of its finite values."""

    num_values: int
    num_nan: int
    num_inf: int
    mean: float
    std: float
    largest: float

    @property
    def all_zero(self) -> bool:
        return self.largest == 0.0 and not self.num_nan and not self.num_inf


def measure(tensor: Tensor) -> TensorStatistics:
    """One pass in chunks, so that a large table is never widened as a whole."""
    flat = tensor.detach().reshape(-1)
    total = squares = largest = 0.0
    num_nan = num_inf = 0
    for chunk in flat.split(_CHUNK):
        wide = chunk.float()
        nan, inf = wide.isnan(), wide.isinf()
        num_nan += int(nan.sum())
        num_inf += int(inf.sum())
        wide = wide.masked_fill(nan | inf, 0.0)
        total += wide.sum(dtype=torch.float64).item()
        squares += wide.square().sum(dtype=torch.float64).item()
        largest = max(largest, wide.abs().max().item())
    num_finite = max(flat.numel() - num_nan - num_inf, 1)
    mean = total / num_finite
    return TensorStatistics(
        num_values=flat.numel(),
        num_nan=num_nan,
        num_inf=num_inf,
        mean=mean,
        std=max(squares / num_finite - mean**2, 0.0) ** 0.5,
        largest=largest,
    )


def measure_all(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, TensorStatistics]:
    """Name -> statistics, one tensor in memory at a time."""
    return {name: measure(tensor) for name, tensor in tensors}


def broken(measured: Mapping[str, TensorStatistics]) -> list[str]:
    """Tensors no healthy model has: not finite, or a kernel of zeros."""
    sentences = [
        f"{name} holds {m.num_nan} NaN and {m.num_inf} infinite of {m.num_values} values"
        for name, m in measured.items()
        if m.num_nan or m.num_inf
    ]
    sentences += [
        f"{name} is all zero, it was never trained or never copied"
        for name, m in measured.items()
        if m.all_zero and name.endswith(("weight", "pos_embedding"))
    ]
    return sentences


def suspicious(measured: Mapping[str, TensorStatistics]) -> list[str]:
    """Layers whose spread is far from that of the same tensor in other layers."""
    families: dict[str, dict[str, float]] = defaultdict(dict)
    for name, m in measured.items():
        if ".blocks." in name and not m.all_zero:
            families[re.sub(r"\.blocks\.\d+\.", ".blocks.*.", name)][name] = m.std
    sentences = []
    for family, spread in families.items():
        median = statistics.median(spread.values())
        if len(spread) < _MIN_LAYERS or median == 0.0:
            continue
        sentences += [
            f"{name} has standard deviation {std:.3g}, {family} has {median:.3g} in the median"
            for name, std in spread.items()
            if not median / OUTLIER_FACTOR <= std <= median * OUTLIER_FACTOR
        ]
    return sentences
