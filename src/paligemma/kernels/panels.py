"""Panels by torch: packing, unpacking and products where the compiled kernels are not there.

kernels.h describes the bytes. Both routes write and read the same ones. Here products widen the
weights a few panels at a time, and inputs are not quantised.

Axes: P panels, N outputs, K inputs, filled up to C columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from paligemma.kernels.nf4 import CODE

PANEL, GROUP, BLOCK = 16, 32, 64
ROW_SCALED = ("fp8", "int8")
# Bytes of a panel for each column; nf4's scales come to it.
_COLUMN_BYTES = {"f32": 64, "bf16": 32, "fp8": 16, "int8": 16, "int4": 9, "nf4": 8}
_NF4_BYTES = BLOCK * 8 + 2 * PANEL
_LARGEST = {"fp8": 448.0, "int8": 127.0}
# Weights that are widened at once.
_AT_ONCE = 1 << 22


class Panels(Protocol):
    """What `multiply` reads of a matrix."""

    n: int
    k: int

    def unpack(self, start: int = 0, stop: int | None = None) -> Tensor: ...


def num_columns(kind: str, k: int) -> int:
    """K filled up to whole groups."""
    step = {"int4": GROUP, "nf4": BLOCK}.get(kind, 2)
    return -(-k // step) * step


def panel_bytes(kind: str, k: int) -> int:
    """Bytes of a panel of 16 rows."""
    columns = num_columns(kind, k)
    return columns // BLOCK * _NF4_BYTES if kind == "nf4" else columns * _COLUMN_BYTES[kind]


def pack(kind: str, rows: Tensor, data: Tensor, scale: Tensor) -> None:
    """Write float[N, K] into the panels of `data`, and scales beside them."""
    n, k = rows.shape
    size, columns = panel_bytes(kind, k), num_columns(kind, k)
    for first in _steps(n, k):
        part = rows[first : first + _rows_at_once(k)].float()
        part = F.pad(part, (0, columns - k, 0, -len(part) % PANEL))
        codes, scales = _encode(kind, part.view(-1, PANEL, columns))
        at = first // PANEL
        data[at * size :][: codes.numel()] = codes.flatten()
        scale[first:][: scales.numel()] = scales.flatten()


def unpack(kind: str, k: int, data: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    """float32[len(rows), K]: the values that rows int64[M] of the matrix stand for."""
    if not len(rows):
        return torch.empty(0, k, dtype=torch.float32)
    size = panel_bytes(kind, k)
    wanted, places = (rows // PANEL).unique(return_inverse=True)
    codes = data[: len(data) // size * size].view(-1, size)[wanted]
    scales = scale.view(-1, PANEL)[wanted] if len(scale) else scale
    values = _decode(kind, codes, scales, num_columns(kind, k))
    return values[places, rows % PANEL, :k]


def multiply(matrix: Panels, x: Tensor) -> Tensor:
    """float32[M, K] -> float32[M, N], some panels at a time."""
    y = x.new_empty(len(x), matrix.n)
    for first in _steps(matrix.n, matrix.k):
        stop = min(first + _rows_at_once(matrix.k), matrix.n)
        y[:, first:stop] = x @ matrix.unpack(first, stop).T
    return y


def _rows_at_once(k: int) -> int:
    return max(_AT_ONCE // k // PANEL, 1) * PANEL


def _steps(n: int, k: int) -> Iterator[int]:
    yield from range(0, n, _rows_at_once(k))


def _encode(kind: str, w: Tensor) -> tuple[Tensor, Tensor]:
    """float32[P, 16, C] -> bytes uint8[P, size] and scales float32[P, 16] of ROW_SCALED kinds."""
    none = w.new_empty(0)
    num_panels = len(w)
    if kind == "f32":
        return w.transpose(1, 2).contiguous().view(torch.uint8).flatten(1), none
    if kind == "bf16":
        pairs = w.to(torch.bfloat16).view(num_panels, PANEL, -1, 2).transpose(1, 2).contiguous()
        return pairs.flatten(1).view(torch.uint8), none
    if kind in ROW_SCALED:
        plain, scale = rounded(kind, w)
        if kind == "fp8":
            return plain.transpose(1, 2).contiguous().view(torch.uint8).flatten(1), scale
        codes = plain.view(num_panels, PANEL, -1, 2).transpose(1, 2)
        return codes.contiguous().flatten(1).view(torch.uint8), scale
    if kind == "int4":
        codes, scales = rounded(kind, w)
        halves = codes.unflatten(2, (-1, 2, 4, 4))  # [P, 16, G, half, q, i]
        joined = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
        joined = joined.permute(0, 2, 3, 1, 4).flatten(2)  # [P, G, 4*16*4]
        tail = scales.transpose(1, 2).contiguous().view(torch.uint8)
        return torch.cat([joined, tail], dim=2).flatten(1), none
    blocks = w.unflatten(2, (-1, BLOCK))
    scales = _half(blocks.abs().amax(dim=3))
    wide = scales.float()[..., None]
    code = torch.tensor(CODE, dtype=torch.float32)
    scaled = blocks * torch.where(wide != 0, 1 / wide, 0)
    codes = torch.bucketize(scaled, (code[1:] + code[:-1]) / 2).to(torch.uint8)
    pairs = codes.unflatten(3, (-1, 2))
    joined = (pairs[..., 0] | pairs[..., 1] << 4).permute(0, 2, 3, 1).flatten(2)
    tail = scales.transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat([joined, tail], dim=2).flatten(1), none


def rounded(kind: str, w: Tensor) -> tuple[Tensor, Tensor]:
    """float32[..., C] as codes [..., C], and their scales.

    Returns:
        int8 or float8_e4m3fn and float32[...] of `ROW_SCALED` kinds; of int4 uint8 that are 8 too
        large and float16[..., C/32].
    """
    if kind == "int4":
        groups = w.unflatten(-1, (-1, GROUP))
        scales = _half(_int4_scales(groups))
        wide = scales.float()[..., None]
        codes = (groups * torch.where(wide != 0, 1 / wide, 0)).round().clamp(-8, 7) + 8
        return codes.to(torch.uint8).flatten(-2), scales
    scale = w.abs().amax(dim=-1) / _LARGEST[kind]
    inverse = torch.where(scale > 0, 1 / scale, 0)
    fine = inverse.isfinite()
    scale, inverse = torch.where(fine, scale, 0), torch.where(fine, inverse, 0)
    scaled = w * inverse[..., None]
    if kind == "fp8":
        return scaled.clamp(-448, 448).to(torch.float8_e4m3fn), scale
    return scaled.round().to(torch.int8), scale


def _int4_scales(groups: Tensor) -> Tensor:
    """float32[..., 32] -> [...]: the scale of least squared error among two starts, by the largest
    value, and three refinements of each by least squares."""
    place = groups.abs().argmax(dim=-1, keepdim=True)
    largest = groups.gather(-1, place)[..., 0]
    columns = groups.movedim(-1, 0).contiguous()
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for divisor in (-8.0, 7.5):
        scale = largest / divisor
        going = largest != 0
        for _ in range(4):
            codes = (columns * (1 / scale)).round().clamp(-8, 7)
            error = _in_order((columns - codes * _half(scale).float()).square())
            better = going & (error < least)
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
            along, square = _in_order(columns * codes), _in_order(codes.square())
            going = going & (square != 0) & (along != 0)
            scale = torch.where(going, along / square, scale)
    return best


def _half(scales: Tensor) -> Tensor:
    """float16, where what is too large becomes the largest."""
    return scales.clamp(-65504, 65504).half()


def _in_order(terms: Tensor) -> Tensor:
    """[32, ...] -> [...]: sums from the first term to the last, as the kernels in C add."""
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def _decode(kind: str, codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    """Bytes uint8[P, size] -> float32[P, 16, C]."""
    num_panels = len(codes)
    if kind == "f32":
        return codes.view(torch.float32).view(num_panels, columns, PANEL).transpose(1, 2)
    if kind == "bf16":
        pairs = codes.view(torch.bfloat16).view(num_panels, -1, PANEL, 2)
        return pairs.transpose(1, 2).flatten(2).float()
    if kind == "fp8":
        values = codes.view(torch.float8_e4m3fn).view(num_panels, columns, PANEL)
        return values.transpose(1, 2).float() * scale[:, :, None]
    if kind == "int8":
        pairs = codes.view(torch.int8).view(num_panels, -1, PANEL, 2)
        return pairs.transpose(1, 2).flatten(2).float() * scale[:, :, None]
    if kind == "int4":
        groups = codes.view(num_panels, -1, 9 * GROUP)
        scales = groups[..., 8 * GROUP :].contiguous().view(torch.float16).transpose(1, 2).float()
        joined = groups[..., : 8 * GROUP].unflatten(2, (4, PANEL, 4))  # [P, G, q, 16, i]
        halves = torch.stack([joined & 15, joined >> 4], dim=2).permute(0, 4, 1, 2, 3, 5)
        return ((halves.flatten(3).float() - 8) * scales[..., None]).flatten(2)
    blocks = codes.view(num_panels, -1, _NF4_BYTES)
    scales = blocks[..., 8 * BLOCK :].contiguous().view(torch.float16).transpose(1, 2).float()
    joined = blocks[..., : 8 * BLOCK].unflatten(2, (-1, PANEL)).permute(0, 3, 1, 2)
    pairs = torch.stack([joined & 15, joined >> 4], dim=-1).flatten(3)
    return (torch.tensor(CODE, dtype=torch.float32)[pairs.long()] * scales[..., None]).flatten(2)
