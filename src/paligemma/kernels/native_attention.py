"""Attention of many queries by the compiled kernels: attend.c, of which this is the caller.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, H head dim.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from paligemma.kernels import native

# Fewer queries than a panel has are not worth it to put all keys and values into tiles.
_FEWEST_QUERIES = 16


class _Strides(ctypes.Structure):
    """`pg_strides` of attend.h."""

    _fields_ = (("row", c_int64), ("token", c_int64), ("head", c_int64))

    @classmethod
    def of(cls, x: Tensor) -> _Strides:
        return cls(*x.stride()[:3])


class _Attention(ctypes.Structure):
    """`pg_attention` of attend.h."""

    _fields_ = (
        *((name, c_int32) for name in ("num_rows", "num_queries", "num_keys")),
        *((name, c_int32) for name in ("num_heads", "num_kv_heads", "head_dim")),
        *((name, c_void_p) for name in ("q", "k", "v")),
        *((name, _Strides) for name in ("q_strides", "k_strides", "v_strides")),
        ("mask", c_void_p),
        *((name, c_int64) for name in ("mask_row", "mask_query")),
        *((name, c_float) for name in ("scale", "cap")),
        ("out", c_void_p),
        ("out_strides", _Strides),
    )


def serves(q: Tensor, k: Tensor) -> bool:
    """Whether `attend` is there for such queries and keys, and pays."""
    return (
        q.shape[1] >= _FEWEST_QUERIES
        and q.dtype == k.dtype == torch.float32
        and q.device.type == "cpu"
        and not torch.is_grad_enabled()
        and native.library() is not None
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """`attend_reference` of float32 in blocks of keys, so that no whole scores exist.

    A query that may attend nothing gets zeros; it is padding that nothing reads.

    Args and result are those of `kernels.attention.attend_reference`.

    Raises:
        ValueError: other dtypes, or shapes that do not belong together.
    """
    if (
        {x.dtype for x in (q, k, v)} != {torch.float32}
        or (mask is not None and mask.dtype != torch.bool)
        or k.shape != v.shape
        or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3])
        or q.shape[2] % k.shape[2]
    ):
        raise ValueError(
            "attention takes float32 queries [B, T, N, H], keys and values [B, S, K, H] and a bool "
            f"mask, got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, num_queries, num_heads, head_dim = q.shape
    mixed = q.new_empty(q.shape)
    if mask is not None:
        mask = mask.expand(batch, num_queries, k.shape[1])
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    arguments = _Attention(
        *(batch, num_queries, k.shape[1], num_heads, k.shape[2], head_dim),
        *(x.data_ptr() for x in (q, k, v)),
        *(_Strides.of(x) for x in (q, k, v)),
        None if mask is None else mask.data_ptr(),
        *((0, 0) if mask is None else mask.stride()[:2]),
        *(scale, softcap or 0.0),
        mixed.data_ptr(),
        _Strides.of(mixed),
    )
    native.on_all_threads().pg_attend(ctypes.byref(arguments))
    return mixed
