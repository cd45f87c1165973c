"""Plain layers in the place of quantised ones: what fewer bits should compute."""

from __future__ import annotations

import torch
from torch import nn

from paligemma.adapt.lora import put_layer
from paligemma.kernels.linear import Linear
from paligemma.kernels.nf4 import NF4Linear
from paligemma.kernels.packed_layers import PackedLinear


@torch.no_grad()
def dequantise(model: nn.Module) -> None:
    """Put linear layers, with the values that the quantised ones stand for, in their place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NF4Linear | PackedLinear):
            plain = Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(module.dense().to(module.dtype), requires_grad=False)
            plain.register_parameter("bias", module.bias)
            put_layer(model, name, plain)
