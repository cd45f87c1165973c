"""What a checkpoint should hold, and how what it holds differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch

from paligemma.config import PaliGemmaConfig
from paligemma.model import PaliGemmaModel

Shapes = Mapping[str, tuple[int, ...]]
_MAX_SHOWN = 200


@lru_cache(maxsize=32)
def parameter_shapes(config: PaliGemmaConfig) -> Shapes:
    """Torch name -> shape of every parameter; nothing is allocated."""
    with torch.device("meta"):
        model = PaliGemmaModel(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def compare_shapes(wanted: Shapes, found: Shapes) -> list[str]:
    """Missing, unexpected and misshaped keys, in that order, one phrase each."""
    return [
        *(f"missing: {key:.200} {shape}" for key, shape in wanted.items() if key not in found),
        *(f"unexpected: {key:.200} {shape}" for key, shape in found.items() if key not in wanted),
        *(
            f"shape: {key:.200} should be {wanted[key]}, is {shape}"
            for key, shape in found.items()
            if key in wanted and wanted[key] != shape
        ),
    ]


def few(names: Sequence[str], count: int = 9) -> str:
    """The first names, each of bounded length, and the number of the others."""
    shown = [name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "..." for name in names]
    rest = len(names) - count
    return ", ".join(shown[:count]) + (f" and {rest} more" if rest > 0 else "")
