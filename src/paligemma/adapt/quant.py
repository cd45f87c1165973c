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
from paligemma.kernels.narrow_layers import NarrowEmbedding, NarrowLinear
from paligemma.kernels.nf4 import NF4Linear
from paligemma.kernels.packed_layers import PackedEmbedding, PackedLinear

# Kinds for answering: packed for a CPU, in plain rows for a GPU. The layers of nf4 can stand under
# an adapter that is trained.
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
        """Whether it is a kind that is packed on a CPU, where the whole model is in float32."""
        return self.kind in PACKED


def place_quantised(
    model: nn.Module, quant: Quant, dtype: torch.dtype, *, packs: bool = True
) -> None:
    """Put empty quantised layers in the place of a model's own; loading fills them.

    Args:
        model: as it was built, on the meta device.
        quant: which layers.
        dtype: of inputs and outputs of the layers; packed ones have float32.
        packs: whether packed kinds are packed for a CPU. For a GPU their layers keep the same
            values in rows, and those that would be packed as bfloat16 stay as they are.
    """
    chosen = layer_names(model, quant.parts)
    head = quant.head or _HEAD
    if quant.is_packed and packs:
        _place_packed(model, dict.fromkeys(chosen, quant.kind), head)
        return
    if quant.is_packed and head != _REST:
        for name, module in list(model.named_modules()):
            if isinstance(module, TiedEmbedding):
                table = (module.num_tokens, module.width)
                narrow = NarrowEmbedding(head, *table, is_tied=module.is_tied, dtype=dtype)
                put_layer(model, name, narrow)
    if quant.kind == _REST:
        return
    for name in chosen:
        layer: Any = model.get_submodule(name)
        sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
        put_layer(
            model,
            name,
            NF4Linear(*sizes, bias=bias, dtype=dtype)
            if quant.kind == "nf4"
            else NarrowLinear(quant.kind, *sizes, bias=bias, dtype=dtype),
        )


def packs_for(device: torch.device | str) -> bool:
    """Whether packed kinds are packed on a device, and computed in float32: on a CPU."""
    return torch.device(device).type == "cpu"


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
