"""A training run small enough for a test: the real parts with a model of a few thousand weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from paligemma.model import PaliGemmaModel
from paligemma.model.paligemma import init_weights
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tiny.data import SceneSource
from paligemma.tiny.objective import SceneObjective
from paligemma.tiny.stages import LossWeights, Stage
from paligemma.tiny.start import PATCH_PX, tiny_config

EMBEDDED = Path(str(resources.files("paligemma"))) / "models" / "tiny"
FIELD_PX, WINDOW_PX = 96, 64


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(EMBEDDED / "tokenizer.model")


@cache
def mask_codec() -> MaskCodec:
    return load_mask_codec(EMBEDDED / "mask_codec.safetensors")


def small_model(seed: int = 0, text_depth: int = 1) -> PaliGemmaModel:
    """The embedded architecture with one layer of width 32 in tower and decoder."""
    config = tiny_config(tokenizer().vocab, FIELD_PX)
    vision = replace(config.vision, width=32, depth=1, mlp_dim=32, num_heads=2)
    text = replace(config.text, width=32, depth=text_depth, mlp_dim=32, num_heads=2, head_dim=16)
    model = PaliGemmaModel(replace(config, vision=vision, text=text))
    init_weights(model, seed)
    return model


def small_objective(model: PaliGemmaModel, **weights: float) -> SceneObjective:
    """Patch losses at a half and spread locations, unless the weights say otherwise."""
    torch.manual_seed(0)
    return SceneObjective(
        model.config.vision.width,
        text_width=model.config.text.width,
        weights=LossWeights(**({"patch": 0.5, "loc_sigma_bins": 4.0} | weights)),
    )


def small_source(**changes: object) -> SceneSource:
    """Two scenes a step, two prompts each; windows of 64 px in a field of 96 px."""
    chosen: dict[str, Any] = {"num_scenes": 2, "prompts_per_scene": 2}
    chosen |= {"window_px": WINDOW_PX, "seed": 0, "mask_tokens": False, "naming": False, **changes}
    seed = chosen.pop("seed")
    losses = LossWeights(
        mask_token=float(chosen.pop("mask_tokens")), naming=float(chosen.pop("naming"))
    )
    stage = Stage(name="small", total_steps=1, lr=1e-3, losses=losses, **chosen)
    return SceneSource(
        stage=stage,
        processor=Processor(tokenizer(), stage.window_px),
        field_px=FIELD_PX,
        codec=mask_codec(),
        patch_px=PATCH_PX,
        text_len=96,
        seed=seed,
    )
