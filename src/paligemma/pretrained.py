"""What belongs to a model by name: weights, tokenizer and mask codec, and the mode it runs in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from paligemma.errors import CheckpointError, ConfigError, TokenizerError
from paligemma.model import PaliGemmaModel
from paligemma.processing.tokenizer import Tokenizer, load_tokenizer
from paligemma.weights.catalog import Checkpoint, resolve
from paligemma.weights.hf_config import Conventions
from paligemma.weights.load import load_model, open_weights, read_config

MODES = ("exact", "mixed", "bf16")
CODEC_VARIABLE = "PALIGEMMA_MASK_CODEC"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        mode: "exact" (float32), "mixed" (float32 weights, bfloat16 arithmetic) or "bf16"; None is
            bf16 for a file in bfloat16, else exact.
        device: None is a CUDA device if there is one, else "cpu".
        revision: branch of the hub.
        image_size_px: another resolution than the file's.
        conventions: "big_vision" or "transformers", where the two differ.
        kv_cache_dtype: "bfloat16" or "float32"; None follows the conventions.
        tokenizer: file or folder; None takes the one beside the weights.
        mask_codec: vae-oid.npz or like; None takes the one beside the weights, or that of
            $PALIGEMMA_MASK_CODEC.
    """

    mode: str | None = None
    device: str | torch.device | None = None
    revision: str | None = None
    image_size_px: int | None = None
    conventions: Conventions = "big_vision"
    kv_cache_dtype: str | None = None
    tokenizer: str | Path | None = None
    mask_codec: str | Path | None = None

    def __post_init__(self) -> None:
        if self.mode is not None:
            require_mode(self.mode)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A loaded model and what belongs to it; `mask_codec` is a file, read when first needed."""

    model: PaliGemmaModel
    tokenizer: Tokenizer
    mask_codec: Path | None
    mode: str
    kv_cache_dtype: str


def load_pretrained(name: str | os.PathLike[str], options: LoadOptions) -> Pretrained:
    """Load a model; small files are checked before large ones are read.

    Args:
        name: "tiny", a hub id such as "google/paligemma2-3b-mix-448", a folder, or an .npz.

    Raises:
        PaliGemmaError: unknown name, files that do not fit, or an option out of its range.
    """
    device = _device(options.device)
    checkpoint = resolve(name, revision=options.revision)
    mask_codec = _find_codec(checkpoint, options.mask_codec)
    with open_weights(checkpoint) as weights:
        config, _ = read_config(checkpoint, weights, options.conventions)
        stored = weights.table_dtype()
    tokenizer = load_tokenizer(_find_tokenizer(checkpoint, options.tokenizer))
    tokenizer.check(config.vocab)
    mode = options.mode or ("bf16" if stored == torch.bfloat16 else "exact")
    loaded = load_model(
        checkpoint,
        dtype=torch.bfloat16 if mode == "bf16" else torch.float32,
        device=device,
        image_size_px=options.image_size_px,
        conventions=options.conventions,
        cache_dtype=options.kv_cache_dtype,
    )
    return Pretrained(
        model=loaded.model,
        tokenizer=tokenizer,
        mask_codec=mask_codec,
        mode=mode,
        kv_cache_dtype=str(loaded.cache_dtype).removeprefix("torch."),
    )


def require_mode(mode: str) -> None:
    """Raise ConfigError unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise ConfigError(f"the mode must be one of {', '.join(MODES)}, got {mode!r}")


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say that it is not there
        raise ConfigError(
            f"the device must be one that torch finds here, such as cpu, got {str(device)!r} "
            f"({str(error).splitlines()[0][:100]})"
        ) from error
    return torch.device(device)


def _find_tokenizer(checkpoint: Checkpoint, stated: str | Path | None) -> Path:
    if stated is not None:
        return Path(stated).expanduser()
    if checkpoint.tokenizer is None:
        raise TokenizerError(
            f"a model needs its tokenizer, {checkpoint.folder} holds neither tokenizer.model nor "
            "tokenizer.json; copy the published file there or pass it as tokenizer"
        )
    return checkpoint.tokenizer


def _find_codec(checkpoint: Checkpoint, stated: str | Path | None) -> Path | None:
    in_environment = os.environ.get(CODEC_VARIABLE)
    named = stated or (None if checkpoint.mask_codec else in_environment)
    if named is None:
        return checkpoint.mask_codec
    path = Path(named).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"a mask codec must be a file such as vae-oid.npz, there is no {str(path)!r}; "
            f"check mask_codec or ${CODEC_VARIABLE}"
        )
    return path
