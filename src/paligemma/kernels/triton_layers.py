"""Triton kernels of a decoder's elementwise parts: what is many launches in torch is one here."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x, scale, out, D, eps, BD: tl.constexpr):
    """x / sqrt(mean(x^2) + eps) * (1 + scale) in float32, rounded once; one program a row."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BD)
    inside = columns < D
    wide = tl.load(x + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    factor = 1 + tl.load(scale + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * D + columns, (wide * root * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def rope(x, cos, sin, out, heads, H: tl.constexpr, BN: tl.constexpr):
    """Feature i of a head rotated against i + H/2 in float32; one program a token."""
    token = tl.program_id(0).to(tl.int64)
    half: tl.constexpr = H // 2
    n, i = tl.arange(0, BN), tl.arange(0, half)
    inside = (n < heads)[:, None] & (i < half)[None, :]
    a, b = tl.load(cos + token * half + i)[None, :], tl.load(sin + token * half + i)[None, :]
    place = token * heads * H + n[:, None] * H + i[None, :]
    first = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + place + half, mask=inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(out + place, (first * a - second * b).to(dtype), mask=inside)
    tl.store(out + place + half, (second * a + first * b).to(dtype), mask=inside)


@triton.jit
def gated_gelu(gate, up, out, size, BLOCK: tl.constexpr):
    """gelu(gate) by tanh in float32, rounded, times up."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    dtype = out.dtype.element_ty
    x = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    # (1 + tanh(y)) / 2 is sigmoid(2 y).
    y = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    opened = (x * tl.sigmoid(2 * y)).to(dtype).to(tl.float32)
    other = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (opened * other).to(dtype), mask=inside)
