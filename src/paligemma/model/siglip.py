"""SigLIP image tower without pooling.

Axes: B images, I patches, D width, N heads, H head dim.
Source: big_vision models/vit.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.config import VisionConfig
from paligemma.kernels import native_attention
from paligemma.kernels.linear import Linear
from paligemma.kernels.packed_layers import PackedLinear

_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Linear projection of patches in raster order; equals the original's convolution."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = config.patch_size_px
        self.proj = Linear(3 * self.patch**2, config.width)

    def forward(self, images: Tensor) -> Tensor:
        """float[B, R, R, 3] -> float[B, I, D]."""
        batch, height, width, _ = images.shape
        rows, columns = height // self.patch, width // self.patch
        patches = images.view(batch, rows, self.patch, columns, self.patch, 3)
        patches = patches.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
        return self.proj(patches.to(self.proj.dtype))


class SelfAttention(nn.Module):
    """Multi-head attention between all patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = Linear(config.width, config.width)
        self.k = Linear(config.width, config.width)
        self.v = Linear(config.width, config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, I, D] -> float[B, I, D]."""
        # [B, I, D] -> [B, I, N, H]
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)) for part in (self.q, self.k, self.v))
        if isinstance(self.q, PackedLinear) and native_attention.serves(q, k):
            scale = q.shape[-1] ** -0.5
            mixed = native_attention.attend(q, k, v, None, scale=scale, softcap=None)
        else:
            # [B, N, I, H] and back
            heads_first = (part.transpose(1, 2) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(*heads_first).transpose(1, 2)
        return self.out(mixed.flatten(-2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, I, D] -> float[B, I, D]."""
        widened = self.fc1(x)
        if torch.is_grad_enabled():
            return self.fc2(F.gelu(widened, approximate="tanh"))
        return self.fc2(torch.ops.aten.gelu_(widened, approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP with a norm before each of them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, I, D] -> float[B, I, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SigLIP(nn.Module):
    """Image to patch features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pos_embedding = nn.Parameter(torch.empty(1, config.num_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Features of every patch.

        Args:
            images: float[B, R, R, 3] in [-1, 1].
            positions: float[1, I, D] rows of the position table, for images that show only a part
                of the field; the whole table by default.

        Returns:
            float[B, I, D] after the final norm.
        """
        x = self.patch_embed(images) + (self.pos_embedding if positions is None else positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def resize_position_table(table: Tensor, num_tokens: int) -> Tensor:
    """Fit a position table to another resolution.

    Args:
        table: float[1, A*A, D], a square grid of A*A patches.
        num_tokens: number of patches of the new square grid, B*B.

    Returns:
        float[1, B*B, D], interpolated linearly with the corners of both grids in the same place.

    Source: big_vision models/vit.py, resample_posemb (scipy zoom of order 1).
    """
    old, new = int(table.shape[1] ** 0.5), int(num_tokens**0.5)
    if old == new:
        return table
    grid = table.unflatten(1, (old, old)).permute(0, 3, 1, 2).double()
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=True)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)
