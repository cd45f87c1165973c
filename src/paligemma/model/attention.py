"""Attention masks and rotary positions.

Axes: B batch, T query tokens, S key tokens, H head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_lm_mask(mask_ar: Tensor, mask_input: Tensor | None = None) -> Tensor:
    """Which key each query may attend.

    Query i attends key j when cumsum(mask_ar)[j] <= cumsum(mask_ar)[i] and both are valid:

        tokens   img img bos pre sep | suf suf eos | pad
        mask_ar   0   0   0   0   0  |  1   1   1  |  1
                  see each other       causal        seen by nothing real

    Args:
        mask_ar: int[B, S], 1 opens a new autoregressive step.
        mask_input: bool[B, S] valid tokens, or None when all are; training uses mask_ar alone.

    Returns:
        bool[B, S, S], [b, query, key].

    Source: big_vision models/proj/paligemma/paligemma.py, make_attn_mask.
    """
    step = mask_ar.cumsum(dim=1)
    mask = step[:, None, :] <= step[:, :, None]
    if mask_input is not None:
        valid = mask_input.bool()
        mask = mask & valid[:, None, :] & valid[:, :, None]
    return mask


def sliding_window_mask(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """Which keys lie less than `window` positions behind the query.

    transformers' Gemma 2 has such a window, big_vision has none. Keys after the query are left to
    the causal mask.

    Args:
        query_positions: int[B, T].
        key_positions: int[B, S].
        window: number of positions, the query's own included.

    Returns:
        bool[B, T, S].
    """
    return query_positions[:, :, None] - key_positions[:, None, :] < window


def rope_wavelengths(head_dim: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """float32[H/2]: theta^(2i/H), by which a position is divided to give its angle i."""
    exponent = torch.arange(head_dim // 2, dtype=torch.float32, device=device) * (2.0 / head_dim)
    return theta**exponent


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles.

    Args:
        positions: int[B, T], 0-based.
        head_dim: size H of a head.
        theta: base of the angles, 10,000 in every release.

    Returns:
        Two float32[B, T, 1, H/2]; angle i is position / theta^(2i/H).
    """
    wavelengths = rope_wavelengths(head_dim, theta, positions.device)
    angles = positions[..., None].float() / wavelengths
    return angles.cos()[:, :, None], angles.sin()[:, :, None]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate element i against element i + H/2, in float32.

    Args:
        x: float[B, T, heads, H].
        cos, sin: float32[B, T, 1, H/2] from `rope_tables`.

    Returns:
        float[B, T, heads, H] in x's dtype.

    Source: big_vision models/ppp/gemma.py, _apply_rope.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
