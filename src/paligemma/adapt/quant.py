"""Layers in fewer bits: which ones, and how they take the place of a model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paligemma.adapt.lora import PARTS, expand_parts, layer_names, put_layer
from paligemma.errors import ConfigError
from paligemma.kernels.linear import Linear, TiedEmbedding
from paligemma.kernels.nf4 import NF4Linear
from paligemma.kernels.packed_layers import PackedEmbedding, PackedLinear

# Kinds of packed matrices, for answering on a CPU; the layers of nf4 can stand under an adapter
# that is trained.
PACKED = ("bf16", "int8", "int4", "fp8")
QUANTS = (*PACKED, "nf4")
# What the layers of a packed model are that are not named, and those that are too small to count.
_REST = "bf16"
# The embedding table and head unless they are named: the loss of fewer bits is largest there.
_HEAD = "int8"
_SHAPE = "NAME, or NAME:parts as in nf4:decoder,vision; of packed ones also head=NAME"


@dataclass(frozen=True)
class Quant:
    """Layers in fewer bits.

    Attributes:
        kind: one of `QUANTS`.
        parts: names of `lora.PARTS`.
        head: of a packed model the kind of embedding table and head, one of `PACKED`.
    """

    kind: str
    parts: tuple[str, ...]
    head: str | None = None

    @classmethod
    def parse(cls, text: str) -> Quant:
        """From a name of `QUANTS`, perhaps with parts and the kind of the head.

        "nf4" is the decoder's layers, "nf4:decoder,vision" those of the named parts. A packed kind
        is the whole model with a head in eight bits; with parts, as in "int4:decoder", all else is
        packed as bfloat16, and "int4,head=bf16" or "int4:decoder,head=int8" name the head.

        Raises:
            ConfigError: another kind, or an unknown part.
        """
        first, *options = (word.strip() for word in text.split(","))
        kind, _, part = first.partition(":")
        heads = [word for word in options if word.startswith("head=")]
        parts = [word for word in (part, *options) if word and word not in heads]
        if kind not in QUANTS or len(heads) > 1 or (options and not part and len(parts) > 0):
            raise ConfigError(
                f"weights are quantised to {', '.join(QUANTS[:-1])} or {QUANTS[-1]} ({_SHAPE}), "
                f"got {text!r:.100}"
            )
        if kind == "nf4":
            if heads:
                raise ConfigError(f"nf4 leaves embedding and head as they are, got {text!r:.100}")
            return cls(kind, expand_parts(parts or ("decoder",)))
        named = heads[0].removeprefix("head=") if heads else None
        if named not in (None, *PACKED):
            raise ConfigError(f"a head is one of {', '.join(PACKED)}, got {named!r:.100}")
        usual = _REST if parts or kind == _REST else _HEAD
        return cls(kind, expand_parts(parts) if parts else tuple(PARTS), named or usual)

    def __str__(self) -> str:
        """What `parse` reads as this."""
        parts = "" if self.is_packed and self.parts == tuple(PARTS) else ":" + ",".join(self.parts)
        return self.kind + parts + ("" if self.head is None else f",head={self.head}")

    @property
    def is_packed(self) -> bool:
        """Whether the whole model is packed, and computed in float32 on the CPU."""
        return self.kind in PACKED


def place_quantised(model: nn.Module, quant: Quant, dtype: torch.dtype) -> None:
    """Put empty quantised layers in the place of a model's own; loading fills them.

    Args:
        model: as it was built, on the meta device.
        quant: which layers.
        dtype: of inputs and outputs of nf4's layers; packed ones have float32.
    """
    chosen = layer_names(model, quant.parts)
    if quant.is_packed:
        _place_packed(model, dict.fromkeys(chosen, quant.kind), quant.head or _HEAD)
        return
    for name in chosen:
        layer: Any = model.get_submodule(name)
        put_layer(
            model,
            name,
            NF4Linear(
                layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype
            ),
        )


def _place_packed(model: nn.Module, kinds: Mapping[str, str], head: str) -> None:
    """Packed layers in the place of all linear layers and of the embedding."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear):
            sizes = (module.in_features, module.out_features)
            packed = PackedLinear(kinds.get(name, _REST), *sizes, bias=module.bias is not None)
            put_layer(model, name, packed)
        elif isinstance(module, TiedEmbedding):
            table = (module.num_tokens, module.width)
            put_layer(model, name, PackedEmbedding(head, *table, is_tied=module.is_tied))
