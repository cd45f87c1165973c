"""Grouped-query attention: the definition beside its fast routes.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, G = N/K, H head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# big_vision's constant: finite, so that a row with nothing to attend is uniform instead of NaN.
MASKED_SCORE = -2.3819763e38

# Capped scores that are held at a time, 64 MB of each of a few temporaries; at 896 px all scores of
# a layer of the 10B are more than a gigabyte.
SCORES_AT_ONCE = 1 << 24


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): nearly x where x is small, and never beyond the cap."""
    return torch.tanh(x / cap) * cap


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """Grouped-query attention as the original defines it; every other path must equal this one.

    Scores and softmax are float32; the cap comes before the mask; query head n reads key head
    n // G.

    Args:
        q: float[B, T, N, H], already rotated, not scaled.
        k, v: float[B, S, K, H].
        mask: bool[B, T, S] or None when everything may be attended.
        softcap: bound of the scores, or None.

    Returns:
        float[B, T, N, H] in v's dtype.

    Source: big_vision models/ppp/gemma.py, Attention.
    """
    batch, num_queries, num_heads, head_dim = q.shape
    num_kv = k.shape[2]
    # [B, T, N, H] -> [B, K, G*T, H]: one matrix product a key head
    grouped = (q.float() * scale).view(batch, num_queries, num_kv, num_heads // num_kv, head_dim)
    grouped = grouped.permute(0, 2, 3, 1, 4).reshape(batch, num_kv, -1, head_dim)
    scores = grouped @ k.float().permute(0, 2, 3, 1)  # [B, K, G*T, S]
    scores = scores.view(batch, num_kv, num_heads // num_kv, num_queries, -1)
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], MASKED_SCORE)
    weights = scores.softmax(dim=-1).to(v.dtype)
    mixed = weights.flatten(2, 3) @ v.permute(0, 2, 1, 3)  # [B, K, G*T, H]
    mixed = mixed.view(batch, num_heads, num_queries, head_dim)
    return mixed.transpose(1, 2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """`attend_reference` by the fastest route that computes the same function.

    Without a soft-cap, this is torch's fused kernel. That kernel has no soft-cap, so with one the
    definition is computed in fewer passes over the scores. Where bfloat16 is slow on a CPU, in
    plain products and in the fused kernel for a single query, float32 is used, which rounds less.

    Args and result are those of `attend_reference`.
    """
    dtype, device = v.dtype, q.device.type
    if device == "cpu" and (softcap is not None or q.shape[1] == 1):
        q, k, v = q.float(), k.float(), v.float()
    if softcap is not None and torch.is_autocast_enabled(device):
        # Scores stay in float32 up to the cap; autocast would narrow the product before it.
        with torch.autocast(device, enabled=False):
            return _attend(q, k, v, mask, scale=scale, softcap=softcap).to(dtype)
    return _attend(q, k, v, mask, scale=scale, softcap=softcap).to(dtype)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    if softcap is not None:
        return _attend_capped(q, k, v, mask, scale=scale, softcap=softcap)
    if q.dtype != k.dtype:
        return attend_reference(q, k, v, mask, scale=scale, softcap=softcap)
    return _attend_fused(q, k, v, mask, scale=scale)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    if mask is not None:
        # A query without any key would give NaN. It is padding that nothing reads, so it gets all.
        mask = (mask | ~mask.any(dim=-1, keepdim=True))[:, None]
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)


def _attend_capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float
) -> Tensor:
    """The definition, few queries at a time where all scores would take much memory."""
    batch, num_queries, num_heads, _ = q.shape
    if torch.compiler.is_exporting():  # a traced graph serves every number of queries
        return _attend_capped_at_once(q, k, v, mask, scale=scale, softcap=softcap)
    at_once = max(SCORES_AT_ONCE // (batch * num_heads * k.shape[1]), 1)
    if num_queries <= at_once:
        return _attend_capped_at_once(q, k, v, mask, scale=scale, softcap=softcap)
    parts = [
        _attend_capped_at_once(
            q[:, first : first + at_once],
            k,
            v,
            None if mask is None else mask[:, first : first + at_once],
            scale=scale,
            softcap=softcap,
        )
        for first in range(0, num_queries, at_once)
    ]
    return torch.cat(parts, dim=1)


def _attend_capped_at_once(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float
) -> Tensor:
    """The definition with 1/cap folded into the queries, and cap and mask into one addition.

    A capped score added to the mask's constant gives the constant itself, which is far larger.
    """
    num_queries, num_heads = q.shape[1:3]
    num_kv = k.shape[2]
    grouped = (q.float() * (scale / softcap)).unflatten(2, (num_kv, -1))
    grouped = grouped.permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, K, G*T, H]
    scores = (grouped @ k.float().permute(0, 2, 3, 1)).tanh_()
    scores = scores.unflatten(2, (-1, num_queries))  # [B, K, G, T, S]
    if mask is None:
        scores = scores * softcap
    else:
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, MASKED_SCORE)
        scores = torch.add(bias[:, None, None], scores, alpha=softcap)
    weights = scores.softmax(dim=-1).to(v.dtype)
    mixed = weights.flatten(2, 3) @ v.permute(0, 2, 1, 3)
    return mixed.view(-1, num_heads, num_queries, v.shape[-1]).transpose(1, 2)
