"""Frozen layers in fewer bits: which ones, and how they take the place of a model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paligemma.adapt.lora import expand_parts, layer_names
from paligemma.errors import ConfigError
from paligemma.kernels.linear import Linear
from paligemma.kernels.nf4 import NF4Linear

QUANTS = ("nf4",)


@dataclass(frozen=True)
class Quant:
    """Linear layers in fewer bits.

    Attributes:
        kind: one of `QUANTS`.
        parts: names of `lora.PARTS`.
    """

    kind: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Quant:
        """From "nf4", the decoder's layers, or "nf4:decoder,vision", those of the named parts.

        Raises:
            ConfigError: another kind, or an unknown part.
        """
        kind, _, parts = text.partition(":")
        if kind not in QUANTS:
            raise ConfigError(
                f"weights are quantised to {' or '.join(QUANTS)}, perhaps with parts as in "
                f"nf4:decoder,vision, got {text!r:.100}"
            )
        return cls(kind, expand_parts([part.strip() for part in (parts or "decoder").split(",")]))


def place_quantised(model: nn.Module, quant: Quant, dtype: torch.dtype) -> None:
    """Put empty quantised layers in the place of a model's own; loading fills them.

    Args:
        model: as it was built, on the meta device.
        quant: which layers.
        dtype: of their inputs and outputs.
    """
    for name in layer_names(model, quant.parts):
        layer: Any = model.get_submodule(name)
        _put(
            model,
            name,
            NF4Linear(
                layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype
            ),
        )


@torch.no_grad()
def dequantise(model: nn.Module) -> None:
    """Put linear layers, with the values that the quantised ones stand for, in their place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NF4Linear):
            plain = Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(module.dense().to(module.dtype), requires_grad=False)
            plain.register_parameter("bias", module.bias)
            _put(model, name, plain)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
