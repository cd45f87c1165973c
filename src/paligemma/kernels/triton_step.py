"""Triton kernels of a decoding step on a GPU: products with few rows, attention, and their rests.

Each kernel reads every weight once and rounds where torch's layers round. They know rows of a batch
only by number: what a row attends, and where its keys and values go, is read from memory, so that a
step can be captured once and replayed with any cache.

KIND is that of a matrix in `gpu_step`: 0 plain, 1 with a scale a row, 2 int4, whose 32 columns of a
group share a scale and lie in 16 bytes.

Axes: M rows (a power of two, 16 at least, of which `num_rows` count), N outputs and K inputs of a
matrix, H head dim, P programs of one row's attention.
"""

import triton
import triton.language as tl


@triton.jit
def _weights(
    codes, scale, outs, some, start, K, KIND: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr
):
    """[N', BK] weights of some outputs, beside the columns `_columns` of the same tile."""
    if KIND == 2:
        places = start // 2 + tl.arange(0, BK // 2)
        inside = some[:, None] & (places < K // 2)[None, :]
        pairs = tl.load(codes + outs[:, None] * (K // 2) + places[None, :], mask=inside, other=0)
        groups = start // 32 + tl.arange(0, BK // 32)
        factors = tl.load(
            scale + outs[:, None] * (K // 32) + groups[None, :],
            mask=some[:, None] & (groups < K // 32)[None, :],
            other=0.0,
        ).to(tl.float32)
        rows: tl.constexpr = pairs.shape[0]
        factors = tl.broadcast_to(factors[:, :, None], [rows, BK // 32, 16])
        factors = tl.reshape(factors, [rows, BK // 2])
        low = ((pairs & 15).to(tl.float32) - 8) * factors
        high = ((pairs >> 4).to(tl.float32) - 8) * factors
        return tl.interleave(low, high).to(dtype)
    columns = start + tl.arange(0, BK)
    inside = some[:, None] & (columns < K)[None, :]
    return tl.load(codes + outs[:, None] * K + columns[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def _columns(start, KIND: tl.constexpr, BK: tl.constexpr):
    """The columns of a tile in the order in which `_weights` holds them."""
    if KIND == 2:
        # A byte holds a column and the one 16 further on.
        place = start // 2 + tl.arange(0, BK) // 2
        return place // 16 * 32 + tl.arange(0, BK) % 2 * 16 + place % 16
    return start + tl.arange(0, BK)


@triton.jit
def _inputs(x, norm, rows, num_rows, columns, K, NORM: tl.constexpr):
    """A tile of the inputs times 1 + scale of their norm, and its sum of squares by row."""
    inside = (rows < num_rows)[:, None] & (columns < K)[None, :]
    tile = tl.load(x + rows[:, None] * K + columns[None, :], mask=inside, other=0.0)
    squares = tl.zeros([rows.shape[0]], dtype=tl.float32)
    if NORM:
        wide = tile.to(tl.float32)
        squares = tl.sum(wide * wide, axis=1)
        factor = 1 + tl.load(norm + columns, mask=columns < K, other=0.0).to(tl.float32)
        tile = (wide * factor[None, :]).to(tile.dtype)
    return tile, squares


@triton.jit
def _outputs(product, scale, outs, some, squares, eps, K, KIND: tl.constexpr, NORM: tl.constexpr):
    """The finished product in float32: scales of its rows of weights, and the norm's root."""
    if KIND == 1:
        product = product * tl.load(scale + outs, mask=some, other=0.0)[None, :]
    if NORM:
        product = product * tl.rsqrt(squares / K + eps)[:, None]
    return product


@triton.jit
def _two_products(
    x, norm, wa, wb, sa, sb, outs_a, outs_b, some, num_rows, eps, K,
    KIND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """[BM, BN] twice: one normed x times some outputs of two matrices, rounded to x's dtype."""
    rows = tl.arange(0, BM)
    dtype = x.dtype.element_ty
    one = tl.zeros([BM, BN], dtype=tl.float32)
    two = tl.zeros([BM, BN], dtype=tl.float32)
    squares = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, K, BK):
        columns = _columns(start, KIND, BK)
        tile, more = _inputs(x, norm, rows, num_rows, columns, K, True)
        squares += more
        a = _weights(wa, sa, outs_a, some, start, K, KIND, BK, dtype)
        b = _weights(wb, sb, outs_b, some, start, K, KIND, BK, dtype)
        one = tl.dot(tile, tl.trans(a), one, input_precision=PRECISION)
        two = tl.dot(tile, tl.trans(b), two, input_precision=PRECISION)
    one = _outputs(one, sa, outs_a, some, squares, eps, K, KIND, True)
    two = _outputs(two, sb, outs_b, some, squares, eps, K, KIND, True)
    return one.to(dtype), two.to(dtype)


@triton.jit
def begin(
    tokens, positions, slots, memory, table, table_scale, x, embed_scale, capacity_of,
    D, DEPTH: tl.constexpr, KIND: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """One program a row: claims its slot, and embeds its token, scaled.

    `memory` holds addresses: keys and values of each layer, then bool[B, S] and int64[B, S] of the
    cache; a row whose slot is negative does nothing.
    """
    row = tl.program_id(0)
    slot, token = tl.load(slots + row), tl.load(tokens + row)
    capacity = tl.load(capacity_of)
    if slot >= 0:
        valid = tl.load(memory + 2 * DEPTH).to(tl.pointer_type(tl.int8))
        placed = tl.load(memory + 2 * DEPTH + 1).to(tl.pointer_type(tl.int64))
        tl.store(valid + row * capacity + slot, 1)
        tl.store(placed + row * capacity + slot, tl.load(positions + row))
        outs = token + tl.arange(0, 1)
        for start in range(0, D, BD):
            columns = _columns(start, KIND, BD)
            tile = _weights(table, table_scale, outs, outs >= 0, start, D, KIND, BD, tl.float32)
            if KIND == 1:
                tile = tile * tl.load(table_scale + outs)[:, None]
            tile = tile.to(x.dtype.element_ty).to(tl.float32) * embed_scale
            target = x + row * D + columns[None, :]
            tl.store(target, tile.to(x.dtype.element_ty), mask=(columns < D)[None, :])


@triton.jit(do_not_specialize=["num_rows", "layer"])
def project(
    x, norm, wq, wk, wv, sq, sk, sv, wavelengths, positions, slots, memory, capacity_of, q,
    num_rows, layer, eps, D,
    HEADS: tl.constexpr, KV: tl.constexpr, H: tl.constexpr, KIND: tl.constexpr,
    CACHE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values behind their norm, rotated; keys and values go to the cache.

    A program has BN features of the first half of a head and those that they rotate against.
    """
    head, part = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, BM)
    half: tl.constexpr = H // 2
    features = part * BN + tl.arange(0, BN)
    some = features < half
    dtype = x.dtype.element_ty
    if head < HEADS:
        codes, scale, first = wq, sq, head * H
    elif head < HEADS + KV:
        codes, scale, first = wk, sk, (head - HEADS) * H
    else:
        codes, scale, first = wv, sv, (head - HEADS - KV) * H
    low, high = first + features, first + half + features
    one, two = _two_products(
        x, norm, codes, codes, scale, scale, low, high, some, num_rows, eps, D,
        KIND, BM, BN, BK, PRECISION,
    )  # fmt: skip
    real = rows < num_rows
    if head < HEADS + KV:
        position = tl.load(positions + rows, mask=real, other=0).to(tl.float32)
        wavelength = tl.load(wavelengths + features, mask=some, other=1.0)
        angle = position[:, None] / wavelength[None, :]
        cos, sin = tl.cos(angle), tl.sin(angle)
        a, b = one.to(tl.float32), two.to(tl.float32)
        one, two = (a * cos - b * sin).to(dtype), (b * cos + a * sin).to(dtype)
    inside = real[:, None] & some[None, :]
    if head < HEADS:
        target = q + rows[:, None] * (HEADS * H) + low[None, :]
        tl.store(target, one, mask=inside)
        tl.store(target + half, two, mask=inside)
    else:
        is_value = tl.where(head >= HEADS + KV, 1, 0)
        stored = tl.load(memory + 2 * layer + is_value).to(tl.pointer_type(CACHE))
        slot = tl.load(slots + rows, mask=real, other=-1)
        place = (rows * tl.load(capacity_of) + slot) * (KV * H)
        stored = stored + place[:, None] + low[None, :]
        inside = inside & (slot >= 0)[:, None]
        tl.store(stored, one.to(CACHE), mask=inside)
        tl.store(stored + half, two.to(CACHE), mask=inside)


@triton.jit(do_not_specialize=["layer"])
def attend(
    q, memory, capacity_of, positions, slots, sums, peaks, mixed, layer, scale, softcap, window,
    DEPTH: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr, H: tl.constexpr,
    PARTS: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, CACHE: tl.constexpr,
    BG: tl.constexpr, BS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A share of a row's slots for the queries of one key head: weighted values, not yet divided.

    `mixed` is float32[P, B, N, H]; `sums` and `peaks` are float32[P, B, N], of the exponentials and
    the largest score that they are relative to.
    """
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_rows = tl.num_programs(2)
    group: tl.constexpr = HEADS // KV
    dtype = q.dtype.element_ty
    g, h = tl.arange(0, BG), tl.arange(0, H)
    queries = (row * HEADS + head * group + g) * H
    query = tl.load(q + queries[:, None] + h[None, :], mask=(g < group)[:, None], other=0.0)
    capacity, length = tl.load(capacity_of), tl.load(slots + row) + 1
    share = tl.cdiv(tl.cdiv(length, PARTS), BS) * BS
    # Without the hint, each element is loaded by itself.
    keys = tl.multiple_of(tl.load(memory + 2 * layer).to(tl.pointer_type(CACHE)), 16)
    values = tl.multiple_of(tl.load(memory + 2 * layer + 1).to(tl.pointer_type(CACHE)), 16)
    valid = tl.load(memory + 2 * DEPTH).to(tl.pointer_type(tl.int8))
    placed = tl.load(memory + 2 * DEPTH + 1).to(tl.pointer_type(tl.int64))
    here = tl.load(positions + row)
    peak = tl.full([BG], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BG], dtype=tl.float32)
    found = tl.zeros([BG, H], dtype=tl.float32)
    for start in range(part * share, tl.minimum(part * share + share, length), BS):
        slot = start + tl.arange(0, BS)
        in_use = slot < length
        place = row * capacity + slot
        seen = in_use & (tl.load(valid + place, mask=in_use, other=0) != 0)
        if WINDOWED:
            seen = seen & (here - tl.load(placed + place, mask=in_use, other=0) < window)
        offset = (place * KV + head) * H
        key = tl.load(keys + offset[:, None] + h[None, :], mask=in_use[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key.to(dtype)), input_precision=PRECISION) * scale
        if CAPPED:
            # tanh(x) is 2 sigmoid(2 x) - 1.
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        score = tl.where(seen[None, :], score, -float("inf"))
        highest = tl.maximum(peak, tl.max(score, axis=1))
        base = tl.where(highest == -float("inf"), 0.0, highest)
        weight = tl.exp(score - base[:, None])
        shrink = tl.exp(peak - base)
        value = tl.load(values + offset[:, None] + h[None, :], mask=in_use[:, None], other=0.0)
        product = tl.dot(weight.to(dtype), value.to(dtype), input_precision=PRECISION)
        found = found * shrink[:, None] + product
        total = total * shrink + tl.sum(weight, axis=1)
        peak = highest
    target = (part * num_rows + row) * HEADS + head * group + g
    tl.store(sums + target, total, mask=g < group)
    tl.store(peaks + target, peak, mask=g < group)
    tl.store(mixed + target[:, None] * H + h[None, :], found, mask=(g < group)[:, None])


@triton.jit
def combine(mixed, sums, peaks, out, H: tl.constexpr, PARTS: tl.constexpr):
    """The parts of one row's attention, float[B, N, H]; one program a row and head."""
    row_head, num = tl.program_id(0), tl.num_programs(0)
    h, part = tl.arange(0, H), tl.arange(0, PARTS)
    peak = tl.load(peaks + part * num + row_head)
    highest = tl.max(peak, axis=0)
    weight = tl.exp(peak - tl.where(highest == -float("inf"), 0.0, highest))
    total = tl.sum(weight * tl.load(sums + part * num + row_head), axis=0)
    values = tl.load(mixed + (part * num + row_head)[:, None] * H + h[None, :])
    found = tl.sum(weight[:, None] * values, axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row_head * H + h, found.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["num_rows"])
def multiply(
    x, norm, codes, scale, out, num_rows, eps, cap, N, K,
    KIND: tl.constexpr, NORM: tl.constexpr, ADDS: tl.constexpr, CAPPED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = x W^T, behind a norm of x, or added to what `out` holds, or capped."""
    rows, outs = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    some = outs < N
    dtype = x.dtype.element_ty
    product = tl.zeros([BM, BN], dtype=tl.float32)
    squares = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, K, BK):
        columns = _columns(start, KIND, BK)
        tile, more = _inputs(x, norm, rows, num_rows, columns, K, NORM)
        squares += more
        weights = _weights(codes, scale, outs, some, start, K, KIND, BK, dtype)
        product = tl.dot(tile, tl.trans(weights), product, input_precision=PRECISION)
    product = _outputs(product, scale, outs, some, squares, eps, K, KIND, NORM)
    target = out + rows.to(tl.int64)[:, None] * N + outs[None, :]
    inside = (rows < num_rows)[:, None] & some[None, :]
    if ADDS:
        before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
        product = before + product.to(dtype).to(tl.float32)
    if CAPPED:
        product = cap * (2 * tl.sigmoid(2 * product / cap) - 1)
    tl.store(target, product.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def gate(
    x, norm, wg, wu, sg, su, out, num_rows, eps, N, K,
    KIND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """gelu(gate(x)) * up(x), behind a norm of x."""
    rows, outs = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    some = outs < N
    dtype = x.dtype.element_ty
    gated, other = _two_products(
        x, norm, wg, wu, sg, su, outs, outs, some, num_rows, eps, K,
        KIND, BM, BN, BK, PRECISION,
    )  # fmt: skip
    one, two = gated.to(tl.float32), other.to(tl.float32)
    # gelu(z) by tanh, which is 2 sigmoid(2 x) - 1.
    inner = 0.7978845608028654 * (one + 0.044715 * one * one * one)
    one = (one * tl.sigmoid(2 * inner)).to(dtype).to(tl.float32)
    inside = (rows < num_rows)[:, None] & some[None, :]
    tl.store(out + rows[:, None] * N + outs[None, :], (one * two).to(dtype), mask=inside)


@triton.jit
def add_normed(x, y, norm, D, eps, BD: tl.constexpr):
    """x += norm(y), one program a row: Gemma 2's norms behind attention and MLP."""
    row, columns = tl.program_id(0), tl.arange(0, BD)
    inside = columns < D
    wide = tl.load(y + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    factor = 1 + tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
    normed = (wide * root * factor).to(x.dtype.element_ty).to(tl.float32)
    before = tl.load(x + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * D + columns, (before + normed).to(x.dtype.element_ty), mask=inside)
