"""Linear layers that an adapter replaces whole, weights and bias, instead of updating them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paligemma.kernels.linear import Linear


def whole_layer(weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> Linear:
    """A frozen layer of weights float[E, D] and a bias float[E], in a dtype of its own."""
    layer = Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return layer


class ReplacedLinear(nn.Module):
    """Another layer in the place of a model's own, in its dtype and on its device.

    Args:
        base: the model's own layer, unchanged.
        layer: what is computed instead.
    """

    def __init__(self, base: Linear, layer: Linear) -> None:
        super().__init__()
        self.base = base
        self.own = whole_layer(layer.weight, layer.bias, base.dtype).to(base.device)
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of inputs and outputs."""
        return self.own.dtype

    @property
    def device(self) -> torch.device:
        return self.own.device

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., E]."""
        return self.own(x)

    def fold(self) -> Linear:
        """The layer that stays when the adapter is merged."""
        return self.own
