"""ColPali with random weights: on the embedded model, or on models of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from paligemma import PaliGemma
from paligemma.kernels.linear import Linear
from paligemma.retrieval.colpali import ColPali
from paligemma.retrieval.presets import PRESETS


def random_head(width: int, dim: int, seed: int = 0) -> Linear:
    """A projection with a bias that matters."""
    generator = torch.Generator().manual_seed(seed)
    head = Linear(width, dim)
    with torch.no_grad():
        head.weight.copy_(torch.randn(dim, width, generator=generator) * width**-0.5)
        head.bias.copy_(torch.randn(dim, generator=generator) * 0.3)
    return head.requires_grad_(False)


def random_colpali(seed: int = 0, dim: int = 128, preset: str = "tiny", **options: Any) -> ColPali:
    """The embedded model under a drawn projection."""
    pg = PaliGemma.from_pretrained("tiny", device="cpu", **options)
    return ColPali(pg, random_head(pg.config.text.width, dim, seed), PRESETS[preset])


def draw_weights(model: nn.Module, seed: int = 0) -> None:
    """Weights so large that soft-caps, norms and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scores = ("q_proj" in name or "k_proj" in name) and name.endswith("weight")
        std = 0.5 if scores else 0.2
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def folder_of(colpali: ColPali, folder: Path) -> Path:
    """The model as a folder, as a user has it."""
    return colpali.save(folder)
