"""Gemma and Gemma 2 decoders in one file.

Axes: B batch, T tokens, S cached tokens, N query heads, K key/value heads, H head dim, D width.
Source: big_vision models/ppp/gemma.py, models/proj/paligemma/gemma_bv.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.config import TextConfig
from paligemma.kernels import fused, native_attention
from paligemma.kernels.attention import attend
from paligemma.kernels.linear import Linear, TiedEmbedding, UntiedEmbedding
from paligemma.kernels.native import in_huge_pages
from paligemma.kernels.packed_layers import PackedLinear
from paligemma.model.attention import apply_rope, rope_tables, sliding_window_mask
from paligemma.model.kv_cache import KVCache

# Of a packed MLP, whose widened rows would be half a gigabyte at 896 px.
ROWS_AT_ONCE = 960


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + scale), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if fused.serves(x):
            return fused.rms_norm(x, self.scale, self.eps)
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (normed * (1 + self.scale.float())).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Context:
    """Inputs that all blocks of one forward share.

    Attributes:
        cos, sin: float32[B, T, 1, H/2] rotary tables of the tokens.
        masks: bool[B, T, S] of even and of odd layers, or None where every key in use is attended.
        cache: keys and values of earlier tokens, or None.
    """

    cos: Tensor
    sin: Tensor
    masks: tuple[Tensor | None, Tensor | None]
    cache: KVCache | None

    def on(self, device: torch.device) -> Context:
        """The same on the device of a block; the cache's layers are there already."""
        if self.cos.device == device:
            return self
        even, odd = (None if mask is None else mask.to(device) for mask in self.masks)
        return replace(self, cos=self.cos.to(device), sin=self.sin.to(device), masks=(even, odd))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.query_scale
        self.softcap = config.attn_softcap
        self.q = Linear(config.width, config.num_heads * config.head_dim, bias=False)
        self.k = Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.v = Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.out = Linear(config.num_heads * config.head_dim, config.width, bias=False)

    def forward(self, x: Tensor, context: Context, num_outputs: int) -> Tensor:
        """float[B, T, D] -> float[B, num_outputs, D], the last tokens."""
        last = slice(-num_outputs, None)
        # [B, T, D] -> [B, T, heads, H]
        q = self.q(x[:, last]).unflatten(-1, (-1, self.head_dim))
        k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.k, self.v))
        rotate = fused.rope if _rotates_fused(q, k) else apply_rope
        q = rotate(q, context.cos[:, last], context.sin[:, last])
        k = rotate(k, context.cos, context.sin)
        if context.cache is not None:
            k, v = context.cache.write(self.layer, k, v)
        mask = context.masks[self.layer % 2]
        mask = None if mask is None else mask[:, last]
        packed = isinstance(self.q, PackedLinear) and native_attention.serves(q, k)
        route = native_attention.attend if packed else attend
        mixed = route(q, k, v, mask, scale=self.scale, softcap=self.softcap)
        return self.out(mixed.flatten(-2))


def _rotates_fused(q: Tensor, k: Tensor) -> bool:
    head_dim = q.shape[-1]
    return fused.serves(q) and fused.serves(k) and not head_dim & (head_dim - 1)


class MLP(nn.Module):
    """Gated MLP: down(gelu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = Linear(config.width, config.mlp_dim, bias=False)
        self.up = Linear(config.width, config.mlp_dim, bias=False)
        self.down = Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, T, D] -> float[B, T, D]."""
        if fused.serves(x):
            return self.down(fused.gated_gelu(self.gate(x), self.up(x)))
        if torch.is_grad_enabled() or not isinstance(self.gate, PackedLinear):
            return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))
        return self._packed(x.flatten(0, -2)).view_as(x)

    def _packed(self, x: Tensor) -> Tensor:
        """float[rows, D] -> float[rows, D], few rows at a time in the same memory.

        A packed layer gives a row the same bits in any company.
        """
        assert isinstance(self.gate, PackedLinear)
        assert isinstance(self.up, PackedLinear)
        assert isinstance(self.down, PackedLinear)
        mixed = torch.empty_like(x)
        gates = in_huge_pages(x.new_empty(2, min(len(x), ROWS_AT_ONCE), self.gate.out_features))
        for rows, out in zip(x.split(ROWS_AT_ONCE), mixed.split(ROWS_AT_ONCE), strict=True):
            gate, up = gates[:, : len(rows)]
            torch.ops.aten.gelu_(self.gate(rows, gate), approximate="tanh")
            self.down(gate.mul_(self.up(rows, up)), out)
        return mixed


class Block(nn.Module):
    """Attention and MLP with a norm before each of them; Gemma 2 has one behind each, too.

    Dropout follows the norm behind attention but precedes the norm behind the MLP, as in the
    original.
    """

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.pre_attn_norm = RMSNorm(width, eps)
        self.attn = Attention(config, layer)
        self.post_attn_norm = RMSNorm(width, eps) if config.post_norms else nn.Identity()
        self.pre_ffw_norm = RMSNorm(width, eps)
        self.mlp = MLP(config)
        self.post_ffw_norm = RMSNorm(width, eps) if config.post_norms else nn.Identity()
        self.dropout = 0.0

    @property
    def device(self) -> torch.device:
        return self.pre_attn_norm.scale.device

    def forward(self, x: Tensor, context: Context, num_outputs: int) -> Tensor:
        """float[B, T, D] -> float[B, num_outputs, D], the last tokens."""
        mixed = self.post_attn_norm(self.attn(self.pre_attn_norm(x), context, num_outputs))
        x = x[:, -num_outputs:] + F.dropout(mixed, self.dropout, self.training)
        widened = F.dropout(self.mlp(self.pre_ffw_norm(x)), self.dropout, self.training)
        return x + self.post_ffw_norm(widened)


class Gemma(nn.Module):
    """Token embedding, decoder blocks, final norm and output head, usually the embedding."""

    def __init__(self, config: TextConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        layer = TiedEmbedding if config.tied_head else UntiedEmbedding
        self.embed = layer(vocab_size, config.width)
        # Factor on text embeddings; `set_embed_scale` rounds it to the checkpoint's dtype.
        self.embed_scale = config.width**0.5
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def set_embed_scale(self, table_dtype: torch.dtype) -> None:
        """Round sqrt(width) to the dtype of the checkpoint's embedding table, as the original does.

        A bfloat16 table of width 2048 gives 45.25, and still does after it was cast to float32.

        Args:
            table_dtype: dtype of the table in the checkpoint.
        """
        self.embed_scale = (
            torch.tensor(self.config.width**0.5, dtype=torch.float64).to(table_dtype).item()
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of embeddings and hidden states."""
        return self.embed.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def block_devices(self) -> list[torch.device]:
        """Where each block lies; all else is on `device`."""
        return [block.device for block in self.blocks]  # type: ignore[misc]

    def embedding_rows(self, start: int, count: int) -> Tensor:
        """float[count, D]: the embeddings of `count` neighbouring ids from `start` on, unscaled."""
        return self.embed.rows(start, count)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """int64[B, T] -> float[B, T, D], scaled; the product is not rounded below float32."""
        rows = self.embed(tokens)
        return (rows.float() * self.embed_scale).to(rows.dtype)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KVCache | None = None,
        *,
        num_outputs: int | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            x: float[B, T, D] embeddings.
            positions: int64[B, T], 0-based.
            mask: bool[B, T, S] or None when every key in use may be attended.
            cache: keys and values of earlier tokens, to which those of these tokens are added in
                slots that were claimed for them; None computes without a cache.
            num_outputs: number of last tokens to return, all by default. The last block computes
                only keys and values of the others.

        Returns:
            float[B, num_outputs, D].
        """
        cos, sin = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        context = Context(
            cos=cos,
            sin=sin,
            # Gemma 2's optional window applies to the even layers, as in transformers.
            masks=(self._window(positions, mask, cache), mask),
            cache=cache,
        )
        last = len(self.blocks) - 1
        for number, (block, device) in enumerate(zip(self.blocks, self.block_devices, strict=True)):
            x, context = x.to(device), context.on(device)
            wanted = num_outputs if number == last else None
            x = block(x, context, wanted or x.shape[1])
        return self.norm(x.to(self.device))

    def _window(
        self, positions: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor | None:
        if self.config.sliding_window is None:
            return mask
        keys = positions if cache is None else cache.positions[:, : cache.length]
        window = sliding_window_mask(positions, keys, self.config.sliding_window)
        if mask is None:
            return window
        if mask.shape[1] == mask.shape[2]:
            # Image and prefix see each other, and the window does not apply among them.
            window = window | mask.mT
        return mask & window

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float32[..., V] by the output head; never capped here."""
        return self.embed.logits(hidden)
