"""What other programs read beside a model's weights: its processor, its tokenizer, how it answers.

Names and fields are those of the published folders (google/paligemma2-3b-mix-224).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from paligemma.config import PaliGemmaConfig
from paligemma.errors import TokenizerError
from paligemma.export.graphs import image_id
from paligemma.export.tokenizer_json import tokenizer_json
from paligemma.processing.added_tokens import IMAGE_PIECE, added_tokens
from paligemma.processing.sentencepiece_model import BOS_PIECE, EOS_PIECE, PAD_PIECE, UNK_PIECE
from paligemma.processing.tokenizer import Tokenizer, load_tokenizer
from paligemma.weights.hf_config import hf_config
from paligemma.weights.model_files import Checkpoint
from paligemma.whole_file import write_json

MAX_NEW_TOKENS = 256
_BICUBIC = 3  # Pillow's number


def write_side_files(checkpoint: Checkpoint, config: PaliGemmaConfig, folder: Path) -> None:
    """Write processor, tokenizer and generation settings; tokenizer files of the source are kept.

    Args:
        checkpoint: where the model came from.
        folder: gets preprocessor_config.json, generation_config.json, and the tokenizer's
            tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Raises:
        TokenizerError: the model has no tokenizer, or one of another kind.
    """
    if checkpoint.tokenizer is None:
        raise TokenizerError(
            f"an export needs the model's tokenizer, {checkpoint.folder} holds neither "
            "tokenizer.model nor tokenizer.json; copy the published file there"
        )
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    tokenizer.check(config.vocab)
    _write_tokenizer(checkpoint, tokenizer, config, folder)
    write_json(folder / "preprocessor_config.json", preprocessor_config(config))
    write_json(folder / "generation_config.json", generation_config(config))


def _write_tokenizer(
    checkpoint: Checkpoint, tokenizer: Tokenizer, config: PaliGemmaConfig, folder: Path
) -> None:
    path = tokenizer.save(folder)
    full = checkpoint.folder / "tokenizer.json"
    if path.name == full.name:
        # As it was published: what is left out while reading serves others.
        shutil.copyfile(checkpoint.tokenizer or full, path)
    elif full.is_file():
        shutil.copyfile(full, folder / full.name)
    else:
        content = tokenizer_json(
            path.read_bytes(),
            image_id=image_id(config.vocab),
            added=added_tokens(checkpoint.folder),
        )
        text = json.dumps(content, ensure_ascii=False)
        (folder / full.name).write_text(text + "\n", encoding="utf-8")
    written = {
        "tokenizer_config.json": tokenizer_config(),
        "special_tokens_map.json": special_tokens(),
    }
    for name, body in written.items():
        own = checkpoint.folder / name
        if own.is_file():
            shutil.copyfile(own, folder / name)
        else:
            write_json(folder / name, body)


def special_tokens() -> dict[str, Any]:
    """Which pieces begin, end, fill up and stand for what is unknown."""
    return {
        "bos_token": BOS_PIECE,
        "eos_token": EOS_PIECE,
        "pad_token": PAD_PIECE,
        "unk_token": UNK_PIECE,
    }


def tokenizer_config() -> dict[str, Any]:
    """What transformers needs beside tokenizer.json; the processor adds BOS itself."""
    return {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "PaliGemmaProcessor",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
        "mask_token": None,
        "extra_special_tokens": {"image_token": IMAGE_PIECE},
        **special_tokens(),
    }


def preprocessor_config(config: PaliGemmaConfig) -> dict[str, Any]:
    """How a picture becomes pixels: bicubic to a square, then -1 to 1."""
    side = config.vision.image_size_px
    return {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _BICUBIC,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": config.num_image_tokens,
    }


def generation_config(config: PaliGemmaConfig) -> dict[str, Any]:
    """Greedy answers up to EOS."""
    vocab = config.vocab
    return {
        "bos_token_id": vocab.bos,
        "eos_token_id": vocab.eos,
        "pad_token_id": vocab.pad,
        "do_sample": False,
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def model_config(config: PaliGemmaConfig, **more: Any) -> dict[str, Any]:
    """config.json of a float32 model, with fields for one program more."""
    return hf_config(config) | more
