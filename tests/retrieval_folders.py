"""Folders of ColPali, small and with random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tiny_folder import write_random_tiny

from paligemma import ColPali, PaliGemma
from paligemma.kernels.linear import Linear
from paligemma.retrieval.presets import PRESETS


def write_colpali(folder: Path, *, seed: int = 0, dim: int = 16) -> Path:
    """Two layers, pictures of 112 px, and a drawn projection."""
    with tempfile.TemporaryDirectory() as scratch:
        pg = PaliGemma.from_pretrained(str(write_random_tiny(Path(scratch) / "tiny")), device="cpu")
        width = pg.config.text.width
        head = Linear(width, dim)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.copy_(torch.randn(dim, width, generator=generator) * width**-0.5)
            head.bias.copy_(torch.randn(dim, generator=generator) * 0.3)
        ColPali(pg, head.requires_grad_(False), PRESETS["tiny"]).save(folder)
    return folder
