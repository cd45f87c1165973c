"""What a checkpoint should hold, and how what it holds differs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from paligemma.config import PaliGemmaConfig
from paligemma.model import PaliGemmaModel

Shapes = Mapping[str, tuple[int, ...]]


@lru_cache(maxsize=32)
def parameter_shapes(config: PaliGemmaConfig) -> Shapes:
    """Torch name -> shape of every parameter; nothing is allocated."""
    with torch.device("meta"):
        model = PaliGemmaModel(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def compare_shapes(wanted: Shapes, found: Shapes) -> list[str]:
    """Missing, unexpected and misshaped keys, in that order, one phrase each."""
    return [
        *(f"missing: {key} {shape}" for key, shape in wanted.items() if key not in found),
        *(f"unexpected: {key} {shape}" for key, shape in found.items() if key not in wanted),
        *(
            f"shape: {key} should be {wanted[key]}, is {shape}"
            for key, shape in found.items()
            if key in wanted and wanted[key] != shape
        ),
    ]
