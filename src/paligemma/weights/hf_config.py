"""config.json of the Hugging Face layout <-> our config.

Published files leave out what equals the defaults of transformers' config classes, so those stand
here.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from paligemma import json_file
from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.errors import CheckpointError, ConfigError
from paligemma.stand_ins import stand_in
from paligemma.vocab import GEMMA_VOCAB, Vocab
from paligemma.weights.computed_fields import has_window, require_computed
from paligemma.weights.dtypes import dtype_name

Conventions = Literal["big_vision", "transformers"]
CONVENTIONS: tuple[Conventions, ...] = ("big_vision", "transformers")
EXTRA = "paligemma"
# Object of config.json about weights in fewer bits.
BITS = "quantization_config"

_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_GEMMA_DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
_GEMMA2_DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object within the bounds of `json_file`.

    Raises:
        CheckpointError: unreadable, beyond the bounds, or not an object.
    """
    try:
        value = json_file.read_json(path)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or stand_in(path) or error
        raise CheckpointError(
            f"{path} must be readable JSON, it is not ({said}); fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, it holds {type(value).__name__}")
    return value


class _Fields:
    """Typed access to one object of config.json with defaults; complains by name."""

    def __init__(self, where: str, raw: object, defaults: Mapping[str, Any]) -> None:
        if not isinstance(raw, dict):
            raise ConfigError(f"{where} of config.json must be an object, got {reprlib.repr(raw)}")
        self._where, self._raw, self._defaults = where, raw, defaults

    def get(self, name: str) -> Any:
        value = self._raw.get(name)
        return self._defaults.get(name) if value is None else value

    def integer(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise ConfigError(
                f"{self._where}.{name} of config.json must be a whole number, got "
                f"{reprlib.repr(value)}; use the config.json that was published with the weights"
            )
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= sys.float_info.max:
            raise ConfigError(
                f"{self._where}.{name} of config.json must be a positive number, got "
                f"{reprlib.repr(value)}; use the config.json that was published with the weights"
            )
        return float(value)

    def flag(self, name: str) -> bool:
        value = False if self.get(name) is None else self.get(name)
        if not isinstance(value, bool):
            raise ConfigError(
                f"{self._where}.{name} of config.json must be true or false, got "
                f"{reprlib.repr(value)}"
            )
        return value

    def optional(self, name: str) -> float | None:
        """Present and null means off; absent means the default."""
        if name in self._raw and not self._raw[name]:
            return None
        return None if self.get(name) is None else self.number(name)


def config_from_hf(
    raw: Mapping[str, Any], *, conventions: Conventions = "big_vision", vocab: Vocab | None = None
) -> PaliGemmaConfig:
    """Our config of a published config.json.

    Args:
        raw: the parsed file.
        conventions: "big_vision" leaves final soft-cap and sliding window off, as the model was
            trained; "transformers" takes them from the file (30 and 4096 in PaliGemma 2).
        vocab: needed only for a foreign vocabulary whose file lacks our `"paligemma"` object.

    Raises:
        ConfigError: not a PaliGemma config, or a value of the wrong kind.
    """
    if conventions not in CONVENTIONS:
        raise ConfigError(
            f"conventions must be one of {', '.join(CONVENTIONS)}, got {conventions!r}"
        )
    if raw.get("model_type") != "paligemma":
        raise ConfigError(
            f'model_type of config.json must be "paligemma", got '
            f"{reprlib.repr(raw.get('model_type'))}; "
            + (
                "a ColPali searches pages and writes no answers, load it with ColPali"
                if raw.get("model_type") == "colpali"
                else "other architectures are not read"
            )
        )
    require_computed(raw)
    extra = _Fields(EXTRA, raw.get(EXTRA, {}), {})
    text_raw = raw.get("text_config", {})
    text = _text_config(text_raw, extra, conventions)
    return PaliGemmaConfig(
        vision=_vision_config(raw.get("vision_config", {})),
        text=text,
        vocab=vocab or _vocab(raw, text_raw),
        weigh_locations=extra.flag("weigh_locations"),
    )


def _vision_config(raw: object) -> VisionConfig:
    fields = _Fields("vision_config", raw, _VISION_DEFAULTS)
    return VisionConfig(
        image_size_px=fields.integer("image_size"),
        patch_size_px=fields.integer("patch_size"),
        width=fields.integer("hidden_size"),
        depth=fields.integer("num_hidden_layers"),
        mlp_dim=fields.integer("intermediate_size"),
        num_heads=fields.integer("num_attention_heads"),
    )


def by_conventions(config: PaliGemmaConfig, conventions: Conventions) -> PaliGemmaConfig:
    """A config in big_vision's conventions, in those that are asked for."""
    if conventions == "big_vision" or not config.text.post_norms:
        return config
    text = replace(
        config.text,
        final_softcap=_GEMMA2_DEFAULTS["final_logit_softcapping"],
        sliding_window=int(_GEMMA2_DEFAULTS["sliding_window"]),
    )
    return replace(config, text=text)


def _text_config(raw: Any, extra: _Fields, conventions: Conventions) -> TextConfig:
    kind = raw.get("model_type", "gemma") if isinstance(raw, dict) else None
    if kind not in ("gemma", "gemma2"):
        raise ConfigError(
            f'text_config.model_type of config.json must be "gemma" or "gemma2", got '
            f"{reprlib.repr(kind)}"
        )
    second = kind == "gemma2"
    fields = _Fields("text_config", raw, _GEMMA2_DEFAULTS if second else _GEMMA_DEFAULTS)
    head_dim = fields.integer("head_dim")
    scale = fields.number("query_pre_attn_scalar") ** -0.5 if second else head_dim**-0.5
    theirs = conventions == "transformers"
    # Version 5 of transformers moved it there.
    rope = _Fields(
        "text_config.rope_parameters",
        fields.get("rope_parameters") or {},
        {"rope_theta": fields.get("rope_theta")},
    )
    return TextConfig(
        width=fields.integer("hidden_size"),
        depth=fields.integer("num_hidden_layers"),
        mlp_dim=fields.integer("intermediate_size"),
        num_heads=fields.integer("num_attention_heads"),
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_dim=head_dim,
        query_scale=extra.optional("query_scale") or scale,
        attn_softcap=fields.optional("attn_logit_softcapping") if second else None,
        final_softcap=fields.optional("final_logit_softcapping") if second and theirs else None,
        post_norms=second,
        sliding_window=_window(fields) if second and theirs and has_window(raw) else None,
        norm_eps=fields.number("rms_norm_eps"),
        rope_theta=rope.number("rope_theta"),
    )


def _window(fields: _Fields) -> int | None:
    return None if fields.optional("sliding_window") is None else fields.integer("sliding_window")


def _vocab(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> Vocab:
    """Id ranges; the table may have more rows than `size`, which ends where `<image>` begins."""
    top = _Fields("config", dict(raw), {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
    rows = text_raw.get("vocab_size") or raw.get("vocab_size") or GEMMA_VOCAB.size
    image = raw.get("image_token_index") or raw.get("image_token_id") or rows
    sizes = _Fields("config", {"vocab_size": rows, "image_token_index": image}, {})
    size = min(sizes.integer("vocab_size"), sizes.integer("image_token_index"))
    ids = {name: top.integer(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if EXTRA in raw and "sep" in raw[EXTRA]:
        extra = raw[EXTRA]
        for name in ("pad", "sep", "loc0", "seg0"):
            value = extra.get(name)
            # -1 stands for a vocabulary without locations and masks.
            if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
                raise ConfigError(
                    f"{EXTRA}.{name} of config.json must be a token id, got {reprlib.repr(value)}"
                )
        ids["pad"] = extra["pad"]
        own = Vocab(size=size, sep=extra["sep"], loc0=extra["loc0"], seg0=extra["seg0"], **ids)
        return with_num_tokens(
            own, _Fields(EXTRA, extra, {"num_tokens": size}).integer("num_tokens")
        )
    if size < GEMMA_VOCAB.size:
        raise ConfigError(
            f"a vocabulary must have {GEMMA_VOCAB.size} ids or state its own in the object "
            f'"{EXTRA}" (pad, sep, loc0, seg0) of config.json, got {size} ids; add that object'
        )
    return replace(GEMMA_VOCAB, size=size, **ids)


def with_num_tokens(vocab: Vocab, num_tokens: int) -> Vocab:
    """The vocabulary with tokens of a fine-tune behind `<image>`, up to so many in all."""
    if num_tokens <= vocab.size:
        return vocab
    image = vocab.size if vocab.image is None else vocab.image
    return replace(vocab, size=num_tokens, image=image)


def is_tied(raw: Mapping[str, Any]) -> bool:
    """Whether the file ties the output head to the embedding table."""
    text = raw.get("text_config")
    stated = [part.get("tie_word_embeddings") for part in (raw, text) if isinstance(part, dict)]
    return False not in stated


def stored_embed_scale(raw: Mapping[str, Any]) -> float | None:
    """The factor on text embeddings if the file states it; else the table's dtype decides."""
    return _Fields(EXTRA, raw.get(EXTRA, {}), {}).optional("embed_scale")


def rounded_embed_scale(config: PaliGemmaConfig, table_dtype: torch.dtype) -> float:
    """sqrt(width) in the dtype of the embedding table (big_vision models/ppp/gemma.py)."""
    return torch.tensor(config.text.width**0.5, dtype=torch.float64).to(table_dtype).item()


def hf_config(
    config: PaliGemmaConfig,
    *,
    dtype: torch.dtype = torch.float32,
    num_rows: int | None = None,
    embed_scale: float | None = None,
) -> dict[str, Any]:
    """config.json that transformers and we read.

    Args:
        dtype: of the weights beside it.
        num_rows: rows of the embedding table if more than the vocabulary has.
        embed_scale: factor on text embeddings; stated only where it does not follow from `dtype`.
    """
    text, vision, vocab = config.text, config.vision, config.vocab
    num_rows = num_rows or vocab.size
    body: dict[str, Any] = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "bos_token_id": vocab.bos,
        "eos_token_id": vocab.eos,
        "pad_token_id": vocab.pad,
        "image_token_index": vocab.size if vocab.image is None else vocab.image,
        "vocab_size": num_rows,
        "hidden_size": text.width,
        "projection_dim": text.width,
        "tie_word_embeddings": text.tied_head,
        "torch_dtype": dtype_name(dtype),
        "text_config": _hf_text(text, num_rows) | {"torch_dtype": dtype_name(dtype)},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size_px,
            "patch_size": vision.patch_size_px,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "num_image_tokens": vision.num_tokens,
            "projection_dim": text.width,
            "vision_use_head": False,
        },
    }
    extra: dict[str, Any] = {}
    if vocab != GEMMA_VOCAB:
        extra |= {"pad": vocab.pad, "sep": vocab.sep, "loc0": vocab.loc0, "seg0": vocab.seg0}
    if vocab.image is not None:
        extra["num_tokens"] = vocab.size
    if not text.post_norms and not math.isclose(text.query_scale, text.head_dim**-0.5):
        extra["query_scale"] = text.query_scale
    if embed_scale is not None and embed_scale != rounded_embed_scale(config, dtype):
        extra["embed_scale"] = embed_scale
    if config.weigh_locations:
        extra["weigh_locations"] = True
    return body | ({EXTRA: extra} if extra else {})


def _hf_text(text: TextConfig, num_rows: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model_type": "gemma2" if text.post_norms else "gemma",
        "vocab_size": num_rows,
        "hidden_size": text.width,
        "intermediate_size": text.mlp_dim,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        **({} if text.tied_head else {"tie_word_embeddings": False}),
    }
    if not text.post_norms:
        if text.attn_softcap is not None:
            raise ConfigError(
                "config.json cannot state an attention soft-cap for a decoder without post-norms, "
                f"got {text.attn_softcap}; leave it off"
            )
        return body
    scalar = text.query_scale**-2
    whole = round(scalar)
    kinds = (
        ("full_attention",)
        if text.sliding_window is None
        else (
            "sliding_attention",
            "full_attention",
        )
    )
    return body | {
        "query_pre_attn_scalar": whole if math.isclose(scalar, whole, rel_tol=1e-9) else scalar,
        "attn_logit_softcapping": text.attn_softcap,
        "final_logit_softcapping": text.final_softcap,
        "sliding_window": text.sliding_window,
        "layer_types": [kinds[layer % len(kinds)] for layer in range(text.depth)],
    }
