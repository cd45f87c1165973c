"""Tiny models of both generations whose weights are large enough that every branch matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.model import PaliGemmaModel
from paligemma.vocab import Vocab

MakeConfig = Callable[..., PaliGemmaConfig]
MakeModel = Callable[..., PaliGemmaModel]


def _config(generation: int, **text_options: Any) -> PaliGemmaConfig:
    second = generation == 2
    text = {
        "width": 32,
        "depth": 3,
        "mlp_dim": 48,
        "num_heads": 4,
        "num_kv_heads": 2 if second else 1,
        "head_dim": 12,
        "query_scale": 8**-0.5 if second else 12**-0.5,
        "attn_softcap": 50.0 if second else None,
        "final_softcap": None,
        "post_norms": second,
        "sliding_window": None,
        "norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    }
    return PaliGemmaConfig(
        vision=VisionConfig(
            image_size_px=28, patch_size_px=14, width=24, depth=2, mlp_dim=40, num_heads=3
        ),
        text=TextConfig(**(text | text_options)),
        vocab=Vocab(size=130, pad=0, eos=1, bos=2, sep=108, loc0=-1, seg0=-1),
    )


def _model(config: PaliGemmaConfig, seed: int = 0) -> PaliGemmaModel:
    generator = torch.Generator().manual_seed(seed)
    model = PaliGemmaModel(config)
    for name, parameter in model.named_parameters():
        # Attention scores of the decoder reach 60 (generation 1) and 67 (2), the cap being 50.
        scores = name.endswith(("q.weight", "k.weight"))
        std = (0.6 if name.startswith("text.") else 0.4) if scores else 0.2
        if name in ("text.embed.weight", "text.embed.head"):
            std = 0.1  # or the tied head repeats one token for ever
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    """make_config(generation, **text_options) -> config."""
    return _config


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """make_model(config, seed=0) -> random float32 model."""
    return _model
