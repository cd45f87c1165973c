"""Checkpoints opened as users open them, and what the model in them computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma.adapt.quant import Quant
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import OpenCheckpoint


def opened(folder: Path, quant: str | None = None, **options: Any) -> PaliGemmaModel:
    """The model of a folder; `options` are those of `OpenCheckpoint`."""
    with OpenCheckpoint(folder, **options) as checkpoint:
        return checkpoint.load(quant=None if quant is None else Quant.parse(quant))


@torch.no_grad()
def logits(model: PaliGemmaModel) -> Tensor:
    """float32[2, 5, V] for two random pictures and prompts, always the same."""
    side = model.config.vision.image_size_px
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, side, side, 3, generator=generator) * 2 - 1
    tokens = torch.randint(model.config.vocab.size, (2, 5), generator=generator)
    return model(model.encode_image(images), tokens, torch.ones_like(tokens))
