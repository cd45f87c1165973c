"""Layers that keep their values where nobody can look: what a quantised layer is to the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.kernels.linear import Linear, TiedEmbedding, linear, logits_product
from paligemma.model import PaliGemmaModel


class _Opaque(nn.Module):
    """Values of a layer under other names; no attribute is called `weight`."""

    packed: Tensor

    def __init__(self, layer: Linear | TiedEmbedding) -> None:
        super().__init__()
        self.register_buffer("packed", layer.weight.detach().clone())

    @property
    def dtype(self) -> torch.dtype:
        return self.packed.dtype

    @property
    def device(self) -> torch.device:
        return self.packed.device


class OpaqueLinear(_Opaque):
    """Stands in for `Linear`."""

    def __init__(self, layer: Linear) -> None:
        super().__init__(layer)
        self.offset = None if layer.bias is None else layer.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        # Outside autocast, a product of two dtypes would fail: the input must have the layer's own.
        assert torch.is_autocast_enabled(x.device.type) or x.dtype == self.dtype
        return linear(x, self.packed, self.offset)


class OpaqueEmbedding(_Opaque):
    """Stands in for `TiedEmbedding`."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.packed[tokens]

    def rows(self, start: int, count: int) -> Tensor:
        return self.packed[start : start + count]

    def logits(self, hidden: Tensor) -> Tensor:
        return logits_product(hidden, self.packed)


def make_opaque(model: PaliGemmaModel) -> int:
    """Replace every linear layer and the embedding in place; returns how many were replaced."""
    num_replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, OpaqueLinear(child))
            elif isinstance(child, TiedEmbedding):
                setattr(parent, name, OpaqueEmbedding(child))
            else:
                continue
            num_replaced += 1
    return num_replaced
