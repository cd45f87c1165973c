"""A decoder's elementwise parts in one launch each, on a GPU with Triton and without gradients.

Every function computes what torch's operations in the model compute, rounded at the same places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paligemma.kernels.gpu_step import why_not

_ELEMENTS = 1024


def serves(x: Tensor) -> bool:
    """Whether these functions compute for such a tensor."""
    return x.is_cuda and not torch.is_grad_enabled() and x.is_contiguous() and why_not() is None


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """float[..., D] normed and times 1 + scale, float[D]."""
    from paligemma.kernels import triton_layers

    width = x.shape[-1]
    out = torch.empty_like(x)
    block = 1 << (width - 1).bit_length()
    if x.numel():
        triton_layers.rms_norm[(x.numel() // width,)](
            x, scale, out, width, eps, BD=block, num_warps=8 if block >= 2048 else 4
        )
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """float[B, T, heads, H] rotated by float32[B, T, 1, H/2] tables."""
    from paligemma.kernels import triton_layers

    heads, head_dim = x.shape[2:]
    out = torch.empty_like(x)
    if x.numel():
        triton_layers.rope[(x.shape[0] * x.shape[1],)](
            x, cos.contiguous(), sin.contiguous(), out, heads,
            H=head_dim, BN=1 << (heads - 1).bit_length(),
        )  # fmt: skip
    return out


def gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, elementwise; `gate` takes the result."""
    from paligemma.kernels import triton_layers

    size = gate.numel()
    if size:
        triton_layers.gated_gelu[(-(-size // _ELEMENTS),)](gate, up, gate, size, BLOCK=_ELEMENTS)
    return gate
