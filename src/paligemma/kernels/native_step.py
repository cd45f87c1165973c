"""The decoder step in C (`step.c`): what it is made of, and the call.

Axes: N tokens, B rows and S slots of a cache, D width, K key/value heads, H head dim, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, fields
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from paligemma.config import TextConfig
from paligemma.kernels.native import KINDS, Matrix, on_all_threads
from paligemma.kernels.packed_matrix import PackedMatrix

# Dtypes of a cache that the step reads and writes.
_CACHE_KINDS = {
    torch.float32: KINDS["f32"],
    torch.bfloat16: KINDS["bf16"],
    torch.int8: KINDS["int8"],
}
# Vectors of eight floats; half a head is rotated against its other half.
_WIDTH_UNIT, _HEAD_UNIT = 8, 16


class Cache(Protocol):
    """Memory of earlier tokens; the slots of this step are claimed.

    Attributes:
        keys, values: [B, S, K, H] of each layer; in int8 [B, S, K, 4 + H], a float32 scale before
            the whole numbers of a head.
        valid: bool[B, S], slots that may be attended.
        positions: int64[B, S].
    """

    keys: list[Tensor]
    values: list[Tensor]
    valid: Tensor
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class StepBlock:
    """Matrices and norms of one decoder block; norms are float32[D], without the 1 that is added.

    q, k and v are of one kind, and so are gate and up: each three or two share their inputs.
    """

    q: PackedMatrix
    k: PackedMatrix
    v: PackedMatrix
    out: PackedMatrix
    gate: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix
    attn_norm: Tensor
    mlp_norm: Tensor
    attn_post_norm: Tensor | None
    mlp_post_norm: Tensor | None


class _Block(Structure):
    _fields_ = [(one.name, c_void_p if "norm" in one.name else Matrix) for one in fields(StepBlock)]


class _Decoder(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("depth", "width", "mlp", "num_heads", "num_kv_heads")),
        *((name, c_int32) for name in ("head_dim", "vocab", "window")),
        *((name, c_float) for name in ("norm_eps", "query_scale", "attn_cap", "final_cap")),
        ("blocks", POINTER(_Block)),
        ("head", Matrix),
        ("norm", c_void_p),
        ("wavelengths", c_void_p),
    ]


class _Tokens(Structure):
    _fields_ = [
        ("num_rows", c_int32),
        ("cache_kind", c_int32),
        ("x", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("row_bytes", c_int64),
        ("valid", c_void_p),
        ("positions", c_void_p),
        ("mask_stride", c_int64),
        ("rows", c_void_p),
        ("ends", c_void_p),
        ("ids", c_void_p),
        ("num_ranges", c_int32),
        ("logits", c_void_p),
        ("scratch", c_void_p),
    ]


def unfit_sizes(config: TextConfig) -> str | None:
    """Why the step in C cannot compute a decoder of these sizes, or None if it can."""
    for name, unit in (("width", _WIDTH_UNIT), ("mlp_dim", _HEAD_UNIT), ("head_dim", _HEAD_UNIT)):
        if getattr(config, name) % unit:
            return f"{name} {getattr(config, name)} is not a multiple of {unit}"
    return None


class DecoderStep:
    """All blocks, the final norm and the head, for some tokens.

    Args:
        config: sizes and conventions; `unfit_sizes` has nothing against them.
        blocks: one for each layer.
        head: matrix [V, D] of the output head.
        norm: float32[D], the final norm without the 1 that is added.
        wavelengths: float32[H/2]; a position divided by one of them is a rotary angle.
    """

    def __init__(
        self,
        config: TextConfig,
        blocks: Sequence[StepBlock],
        *,
        head: PackedMatrix,
        norm: Tensor,
        wavelengths: Tensor,
    ) -> None:
        self._owners = (blocks, head, norm, wavelengths)
        self._blocks = (_Block * len(blocks))(*(_block(block) for block in blocks))
        self._decoder = _Decoder(
            depth=len(blocks),
            width=config.width,
            mlp=config.mlp_dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab=head.n,
            window=config.sliding_window or 0,
            norm_eps=config.norm_eps,
            query_scale=config.query_scale,
            attn_cap=config.attn_softcap or 0,
            final_cap=config.final_softcap or 0,
            blocks=self._blocks,
            head=head.descriptor(),
            norm=norm.data_ptr(),
            wavelengths=wavelengths.data_ptr(),
        )
        # Kept from call to call: scratch, and what a call hands over. They serve one at a time.
        self._pointers = (c_void_p * len(blocks))(), (c_void_p * len(blocks))()
        self._tokens = _Tokens(
            keys=ctypes.addressof(self._pointers[0]), values=ctypes.addressof(self._pointers[1])
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._scratch_for = (0, 0)
        self._lock = Lock()

    @staticmethod
    def takes(dtype: torch.dtype) -> bool:
        """Whether caches of a dtype can be read and written."""
        return dtype in _CACHE_KINDS

    def __call__(
        self,
        x: Tensor,
        cache: Cache,
        rows: Tensor,
        ends: Tensor,
        ids: Sequence[range] | None = None,
    ) -> Tensor:
        """Logits after each token; their keys and values are added to the cache.

        Args:
            x: float32[N, D] embeddings, overwritten: the residual stream grows in them.
            cache: in the CPU's memory.
            rows: int64[N], the row of the cache that each token belongs to. Of several tokens of
                one row, each sees those before it.
            ends: int64[N], the slot after each token's own.
            ids: ascending ranges of the token ids that matter, or None for all; the logits of
                others are minus infinity.

        Returns:
            float32[N, V], capped if the config has a final soft-cap.
        """
        keys = cache.keys[0]
        num_rows, num_slots = len(x), keys.shape[1]
        x = x.to(torch.float32).contiguous()
        logits = x.new_empty(num_rows, self._decoder.vocab)
        bounds = None if ids is None else _bounds(ids)
        with self._lock:
            kernels, tokens = on_all_threads(), self._tokens
            for kept, layers in zip(self._pointers, (cache.keys, cache.values), strict=True):
                kept[:] = [layer.data_ptr() for layer in layers]
            tokens.num_rows, tokens.cache_kind = num_rows, _CACHE_KINDS[keys.dtype]
            tokens.x, tokens.logits = x.data_ptr(), logits.data_ptr()
            tokens.row_bytes = keys.stride(0) * keys.element_size()
            tokens.valid, tokens.positions = cache.valid.data_ptr(), cache.positions.data_ptr()
            tokens.mask_stride = cache.valid.stride(0)
            tokens.rows, tokens.ends = rows.data_ptr(), ends.data_ptr()
            tokens.ids = None if bounds is None else ctypes.addressof(bounds)
            tokens.num_ranges = 0 if ids is None else len(ids)
            tokens.scratch = self._scratch_of(kernels, num_rows, num_slots)
            kernels.pg_step(ctypes.addressof(self._decoder), ctypes.addressof(tokens))
        return logits

    def _scratch_of(self, kernels: ctypes.CDLL, num_rows: int, num_slots: int) -> int:
        rows, slots = self._scratch_for
        if num_rows > rows or num_slots > slots:
            self._scratch_for = max(num_rows, rows), max(num_slots, slots)
            size = kernels.pg_step_scratch(ctypes.addressof(self._decoder), *self._scratch_for)
            self._scratch = torch.empty(size + 64, dtype=torch.uint8)
        return (self._scratch.data_ptr() + 63) & ~63


def _block(block: StepBlock) -> _Block:
    made = _Block()
    for one in fields(block):
        value = getattr(block, one.name)
        if isinstance(value, PackedMatrix):
            setattr(made, one.name, value.descriptor())
        elif value is not None:
            setattr(made, one.name, value.data_ptr())
    return made


def _bounds(ids: Sequence[range]) -> ctypes.Array[c_int32]:
    flat = [bound for part in ids for bound in (part.start, part.stop)]
    return (c_int32 * len(flat))(*flat)
