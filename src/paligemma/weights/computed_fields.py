"""Fields of config.json that change numbers and are computed with one value only.

Gone through: every field of transformers' PaliGemma, Gemma, Gemma 2 and SigLIP vision configs.
Those that are read stand in `hf_config`; those for training, caching or printing are left out.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from paligemma.errors import ConfigError

_TANH = "gelu_pytorch_tanh"
# Where, field, and what it may be beside null; the first is named in the error.
_COMPUTED: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("", "quantization_config", (None,)),
    ("", "compression_config", (None,)),
    ("text_config", "quantization_config", (None,)),
    ("vision_config", "quantization_config", (None,)),
    ("text_config", "hidden_activation", (_TANH,)),
    ("text_config", "attention_bias", (False,)),
    ("text_config", "mlp_bias", (False,)),
    ("text_config", "use_bidirectional_attention", (True,)),
    ("text_config", "add_cross_attention", (False,)),
    ("vision_config", "model_type", ("siglip_vision_model",)),
    ("vision_config", "hidden_act", (_TANH,)),
    ("vision_config", "num_channels", (3,)),
    ("vision_config", "layer_norm_eps", (1e-6,)),
)
_ROPE = {"rope_theta", "rope_type", "type"}
_SLIDING, _FULL = "sliding_attention", "full_attention"


def require_computed(raw: Mapping[str, Any]) -> None:
    """Check the fields that this package computes with one value only.

    Raises:
        ConfigError: a field asks for something else; it is named with the value that is computed.
    """
    for where, name, values in _COMPUTED:
        part = raw.get(where, {}) if where else raw
        _require(f"{where}.{name}".lstrip("."), _value(part, name), values)
    text = raw.get("text_config", {})
    legacy = ("gelu",) if _value(text, "hidden_activation") else ()
    _require("text_config.hidden_act", _value(text, "hidden_act"), (_TANH, *legacy))
    for name in ("rope_scaling", "rope_parameters"):
        rope = _value(text, name)
        if not isinstance(rope, dict):
            if name == "rope_scaling":
                _require(f"text_config.{name}", rope, (None,))
            continue
        for key, value in rope.items():
            if key not in _ROPE:
                _require(f"text_config.{name}.{key}", value, (None,))
            elif key != "rope_theta":
                _require(f"text_config.{name}.{key}", value, ("default",))
    has_window(text)


def has_window(text: Mapping[str, Any]) -> bool:
    """Whether the even layers of the decoder look back a window only, by their stated types.

    Raises:
        ConfigError: the types are neither those of Gemma 2 nor all full.
    """
    types = _value(text, "layer_types")
    if types is None:
        return True
    if isinstance(types, list) and all(kind == _FULL for kind in types):
        return False
    in_turn = isinstance(types, list) and [
        (_SLIDING, _FULL)[layer % 2] for layer in range(len(types))
    ]
    if not in_turn or types != in_turn:
        raise ConfigError(
            f"text_config.layer_types of config.json must be {_SLIDING} and {_FULL} in turn, or "
            f"all {_FULL}, got {reprlib.repr(types)}; other orders are not computed"
        )
    return True


def _value(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else None


def _require(name: str, value: Any, values: tuple[Any, ...]) -> None:
    if value is None or any(_same(value, allowed) for allowed in values):
        return
    computed = "absent" if values[0] is None else repr(values[0])
    raise ConfigError(
        f"{name} of config.json must be {computed}, got {reprlib.repr(value)}, which is not "
        "computed; use a checkpoint without it"
    )


def _same(value: Any, allowed: Any) -> bool:
    if isinstance(allowed, float) and isinstance(value, float | int):
        return math.isclose(value, allowed)
    return type(value) is type(allowed) and value == allowed
