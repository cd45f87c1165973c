"""A model folder like the embedded model's, with fewer layers and random weights."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch

from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.tiny.start import tiny_config
from paligemma.weights.save import save_model

EMBEDDED = Path(str(resources.files("paligemma"))) / "models" / "tiny"
DESK = Path(__file__).parents[1] / "examples" / "desk.png"
# Of the embedded model.
VOCAB = load_tokenizer(EMBEDDED).vocab


def write_random_tiny(folder: Path, *, dtype: str = "float16", layout: str = "hf") -> Path:
    """Weights, tokenizer and a narrow mask codec; small pictures and two layers keep it fast."""
    tokenizer = load_tokenizer(EMBEDDED)
    config = tiny_config(tokenizer.vocab, image_size_px=112)
    config = replace(
        config, vision=replace(config.vision, depth=2), text=replace(config.text, depth=2)
    )
    model = PaliGemmaModel(config)
    init_weights(model)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.projector.weight, std=config.vision.width**-0.5)
    extra_files = [EMBEDDED / "tokenizer.model"]
    save_model(model, folder, dtype=dtype, layout=layout, extra_files=extra_files)
    narrow = MaskCodecConfig(channels=(4, 4, 4), hidden=8, code_dim=8, num_codes=128)
    MaskCodec(narrow).save(folder / "mask_codec.safetensors", dtype="float16")
    return folder
