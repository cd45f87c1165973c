"""A decoding step on a GPU: a few Triton kernels a block, captured once as a CUDA graph.

Axes: B rows, M rows of the buffers (a power of two), D width, N query and K key heads, H head dim,
V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from paligemma.config import TextConfig

# The environment variable that asks for these kernels.
SWITCH = "PALIGEMMA_GPU_STEP"
# Kinds of a matrix, as in `narrow_layers`; PLAIN is in the dtype of the hidden states.
PLAIN, ROWWISE, INT4 = 0, 1, 2
# Rows of one step; torch's layers compute larger batches.
MAX_ROWS = 64
# Shares of a row's attention that are computed side by side, over all rows and key heads.
_PROGRAMS = 128
_MAX_PARTS = 32
# What a product of 16 rows needs at least.
_LEAST = 16


class Cache(Protocol):
    """Memory of earlier tokens, as in `native_step.Cache`; the slots of this step are claimed."""

    keys: list[Tensor]
    values: list[Tensor]
    valid: Tensor
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class RowMatrix:
    """A matrix [n, k] in rows.

    Attributes:
        kind: PLAIN, ROWWISE or INT4.
        codes: float[n, k], int8 or float8[n, k], or of int4 uint8[n, k/2].
        scale: float32[n], or of int4 float16[n, k/32]; of a plain matrix its codes.
    """

    kind: int
    codes: Tensor
    scale: Tensor
    n: int
    k: int


@dataclass(frozen=True, kw_only=True)
class GpuBlock:
    """Matrices and norms of one decoder block; norms are float[D], without the 1 that is added."""

    q: RowMatrix
    k: RowMatrix
    v: RowMatrix
    out: RowMatrix
    gate: RowMatrix
    up: RowMatrix
    down: RowMatrix
    attn_norm: Tensor
    mlp_norm: Tensor
    attn_post_norm: Tensor | None
    mlp_post_norm: Tensor | None


@dataclass(frozen=True, kw_only=True)
class _Tiles:
    """Outputs and inputs of a tile, warps of a program, and tiles that are on their way."""

    outs: int
    ins: int
    warps: int
    stages: int

    def launch(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


# Not measured on a card yet; `benchmarks/gpu.py --experiments` tries others.
TILES = {
    "project": _Tiles(outs=16, ins=128, warps=4, stages=4),
    "narrow": _Tiles(outs=16, ins=256, warps=4, stages=4),
    "gate": _Tiles(outs=32, ins=128, warps=4, stages=4),
    "head": _Tiles(outs=64, ins=128, warps=4, stages=4),
}


def unfit_sizes(config: TextConfig) -> str | None:
    """What the kernels cannot compute of a decoder, for people, or None."""
    if config.head_dim & (config.head_dim - 1) or not 32 <= config.head_dim <= 256:
        return f"a head has {config.head_dim} features, not 32, 64, 128 or 256"
    return None


class StepBuildError(Exception):
    """The kernels could not be compiled or recorded on this device."""


class _State:
    """Buffers of one number of rows, and the graph that reads and writes them."""

    def __init__(self, step: GpuStep, num_rows: int) -> None:
        config, device = step.config, step.norm.device
        rows = 1 << (num_rows - 1).bit_length()
        heads = config.num_heads
        programs = max(1, _PROGRAMS // (rows * config.num_kv_heads))
        self.num_rows = rows
        self.parts = min(_MAX_PARTS, 1 << (programs.bit_length() - 1))
        whole = partial(torch.zeros, device=device, dtype=torch.long)
        real = partial(torch.empty, device=device, dtype=step.dtype)
        wide = partial(torch.empty, device=device, dtype=torch.float32)
        self.tokens, self.positions, self.slots = whole(rows), whole(rows), whole(rows)
        self.memory, self.capacity = whole(2 * config.depth + 2), whole(1)
        self.x, self.y = real(rows, config.width), real(rows, config.width)
        self.q, self.mixed = (real(rows, heads * config.head_dim) for _ in range(2))
        self.hidden = real(rows, config.mlp_dim)
        self.sums, self.peaks = wide(self.parts, rows, heads), wide(self.parts, rows, heads)
        self.shares = wide(self.parts, rows, heads, config.head_dim)
        self.logits = wide(rows, step.head.n)
        self.graph: torch.cuda.CUDAGraph | None = None
        self._places: list[int] = []

    def take(self, tokens: Tensor, positions: Tensor, slots: Sequence[int], cache: Cache) -> None:
        """Copy what a step reads into the buffers; nothing waits for the device."""
        num_rows = len(tokens)
        self.tokens[:num_rows].copy_(tokens)
        self.positions[:num_rows].copy_(positions)
        own = [*slots, *[-1] * (self.num_rows - num_rows)]
        self.slots.copy_(torch.tensor(own), non_blocking=True)
        kept = (*_both(cache), cache.valid, cache.positions)
        places = [*map(Tensor.data_ptr, kept), cache.valid.shape[1]]
        if places != self._places:
            self.memory.copy_(torch.tensor(places[:-1]), non_blocking=True)
            self.capacity.copy_(torch.tensor(places[-1:]), non_blocking=True)
            self._places = places


def _both(cache: Cache) -> list[Tensor]:
    return [one for pair in zip(cache.keys, cache.values, strict=True) for one in pair]


class GpuStep:
    """One token of each row through a decoder.

    Args:
        blocks: of the decoder, in order.
        table: the embeddings [V, D].
        head: the output head [V, D], often the table.
        norm: float[D] of the last norm.
        wavelengths: float32[H/2] of the rotary angles.
        embed_scale: factor on the embeddings.
        dtype: of the hidden states, bfloat16 or float32.
    """

    def __init__(
        self,
        config: TextConfig,
        blocks: Sequence[GpuBlock],
        *,
        table: RowMatrix,
        head: RowMatrix,
        norm: Tensor,
        wavelengths: Tensor,
        embed_scale: float,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.blocks = config, blocks
        self.table, self.head, self.norm = table, head, norm
        self.wavelengths, self.embed_scale, self.dtype = wavelengths, embed_scale, dtype
        self._states: dict[tuple[int, torch.dtype], _State] = {}
        self._pool: Any = None

    @staticmethod
    def takes(num_rows: int, cache_dtype: torch.dtype) -> bool:
        """Whether so many rows, and a cache of this dtype, can be computed."""
        return num_rows <= MAX_ROWS and cache_dtype in (torch.float32, torch.bfloat16)

    def __call__(
        self, tokens: Tensor, positions: Tensor, slots: Sequence[int], cache: Cache
    ) -> Tensor:
        """Logits float32[B, V], capped if the config has a final soft-cap.

        Args:
            tokens, positions: int64[B], each row's last token and its rotary position.
            slots: where each row's keys and values go; written here, with `valid` and `positions`.
            cache: of B rows; float32 or bfloat16.

        Raises:
            StepBuildError: at the first step of so many rows.
        """
        key = (1 << (len(tokens) - 1).bit_length(), cache.keys[0].dtype)
        state = self._states.get(key)
        if state is None:
            with torch.inference_mode(False):
                state = self._states[key] = _State(self, len(tokens))
        state.take(tokens, positions, slots, cache)
        if not tokens.is_cuda:
            self._launch(state, key[1])
        else:
            with torch.cuda.device(tokens.device):
                if state.graph is None:
                    self._capture(state, key[1])
                assert state.graph is not None
                state.graph.replay()
        return state.logits[: len(tokens)].clone()

    def _capture(self, state: _State, cache_dtype: torch.dtype) -> None:
        """Run once, which compiles the kernels, then record the same launches."""
        graph = torch.cuda.CUDAGraph()
        try:
            self._launch(state, cache_dtype)
            torch.cuda.synchronize()
            # Other threads may allocate meanwhile, such as those that encode pictures.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._launch(state, cache_dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise StepBuildError(f"{type(error).__name__}: {error}") from error
        self._pool, state.graph = graph.pool(), graph

    def _launch(self, s: _State, cache_dtype: torch.dtype) -> None:
        from paligemma.kernels import triton_step as kernels

        c, rows = self.config, s.num_rows
        width, heads, kv, head_dim = c.width, c.num_heads, c.num_kv_heads, c.head_dim
        cache = kernels.tl.bfloat16 if cache_dtype == torch.bfloat16 else kernels.tl.float32
        exact = {"PRECISION": "ieee", "BM": max(_LEAST, rows)}
        kernels.begin[(rows,)](
            s.tokens, s.positions, s.slots, s.memory, self.table.codes, self.table.scale, s.x,
            self.embed_scale, s.capacity, width,
            DEPTH=c.depth, KIND=self.table.kind, BD=min(1024, _power(width)),
        )  # fmt: skip
        for layer, block in enumerate(self.blocks):
            tiles = TILES["project"]
            outs = min(tiles.outs, head_dim // 2)
            kernels.project[(heads + 2 * kv, -(-(head_dim // 2) // outs))](
                s.x, block.attn_norm, block.q.codes, block.k.codes, block.v.codes,
                block.q.scale, block.k.scale, block.v.scale, self.wavelengths, s.positions,
                s.slots, s.memory, s.capacity, s.q, rows, layer, c.norm_eps, width,
                HEADS=heads, KV=kv, H=head_dim, KIND=block.q.kind, CACHE=cache, BN=outs,
                BK=tiles.ins, **exact, **tiles.launch(),
            )  # fmt: skip
            window = c.sliding_window if layer % 2 == 0 else None
            kernels.attend[(s.parts, kv, rows)](
                s.q, s.memory, s.capacity, s.positions, s.slots, s.sums, s.peaks, s.shares, layer,
                c.query_scale, c.attn_softcap or 0.0, window or 0,
                DEPTH=c.depth, HEADS=heads, KV=kv, H=head_dim, PARTS=s.parts,
                CAPPED=c.attn_softcap is not None, WINDOWED=window is not None, CACHE=cache,
                BG=max(_LEAST, _power(heads // kv)), BS=32, PRECISION="ieee",
                num_warps=4, num_stages=2,
            )  # fmt: skip
            kernels.combine[(rows * heads,)](
                s.shares, s.sums, s.peaks, s.mixed, H=head_dim, PARTS=s.parts, num_warps=4
            )
            self._add(kernels, s.mixed, block.out, block.attn_post_norm, s)
            tiles = TILES["gate"]
            kernels.gate[(-(-c.mlp_dim // tiles.outs),)](
                s.x, block.mlp_norm, block.gate.codes, block.up.codes, block.gate.scale,
                block.up.scale, s.hidden, rows, c.norm_eps, c.mlp_dim, width,
                KIND=block.gate.kind, BN=tiles.outs, BK=tiles.ins, **exact, **tiles.launch(),
            )  # fmt: skip
            self._add(kernels, s.hidden, block.down, block.mlp_post_norm, s)
        self._multiply(
            kernels, s.x, self.head, s.logits, rows, "head", norm=self.norm, cap=c.final_softcap
        )

    def _add(
        self, kernels: Any, x: Tensor, matrix: RowMatrix, post_norm: Tensor | None, s: _State
    ) -> None:
        """The residual s.x plus a product, which may have a norm behind it."""
        if post_norm is None:
            self._multiply(kernels, x, matrix, s.x, s.num_rows, "narrow", adds=True)
            return
        self._multiply(kernels, x, matrix, s.y, s.num_rows, "narrow")
        width = self.config.width
        kernels.add_normed[(s.num_rows,)](
            s.x, s.y, post_norm, width, self.config.norm_eps, BD=_power(width), num_warps=8
        )

    def _multiply(
        self,
        kernels: Any,
        x: Tensor,
        matrix: RowMatrix,
        out: Tensor,
        rows: int,
        tiles_of: str,
        *,
        norm: Tensor | None = None,
        adds: bool = False,
        cap: float | None = None,
    ) -> None:
        tiles = TILES[tiles_of]
        kernels.multiply[(-(-matrix.n // tiles.outs),)](
            x, x if norm is None else norm, matrix.codes, matrix.scale, out, rows,
            self.config.norm_eps, cap or 0.0, matrix.n, matrix.k,
            KIND=matrix.kind, NORM=norm is not None, ADDS=adds, CAPPED=cap is not None,
            BM=max(_LEAST, rows), BN=tiles.outs, BK=tiles.ins, PRECISION="ieee", **tiles.launch(),
        )  # fmt: skip


def _power(number: int) -> int:
    """The power of two that is not less."""
    return 1 << (number - 1).bit_length()


def why_not() -> str | None:
    """Why the kernels are not used here, for people; None where they are."""
    return _missing() if is_on() else f"{SWITCH} is not on"


def is_on() -> bool:
    """Whether the environment asks for the kernels: they have not been run on a card yet."""
    return os.environ.get(SWITCH) == "on"


@cache
def _missing() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError:
        return "the package triton is not installed"
    return None
