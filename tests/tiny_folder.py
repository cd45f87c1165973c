"""A model folder with the architecture and tokenizer of the embedded model and random weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from paligemma.model.paligemma import PaliGemmaModel
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.train.tiny import init_tiny, tiny_config
from paligemma.weights.save import save_model

EMBEDDED = Path(str(resources.files("paligemma"))) / "models" / "tiny"


def write_random_tiny(folder: Path, *, image_size_px: int = 112) -> Path:
    """Weights in float16, tokenizer and a narrow mask codec; small pictures keep it fast."""
    tokenizer = load_tokenizer(EMBEDDED)
    model = PaliGemmaModel(tiny_config(tokenizer.vocab, image_size_px))
    init_tiny(model)
    save_model(
        model, folder, dtype="float16", extra_files=[EMBEDDED / "tokenizer.model"], overwrite=True
    )
    torch.manual_seed(0)
    narrow = MaskCodecConfig(channels=(4, 4, 4), hidden=8, code_dim=8, num_codes=128)
    MaskCodec(narrow).save(folder / "mask_codec.safetensors", dtype="float16")
    return folder
