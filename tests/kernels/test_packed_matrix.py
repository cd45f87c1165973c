"""Matrices in panels: the bytes, the values and the products, beside NumPy and beside torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paligemma.kernels import native, panels
from paligemma.kernels.packed_matrix import KINDS, PackedMatrix

# Rows and columns: whole panels and groups, parts of them, one of each, the tower's 4304.
SHAPES = ((16, 64), (1, 1), (37, 100), (130, 1152), (33, 31), (20, 4304))
# Rows of inputs: each size of a tile, several tiles, more than one turn of a large product.
NUM_ROWS = (1, 2, 3, 4, 5, 6, 7, 11, 12, 29, 250)
# Largest relative error of a product of random numbers, beside the values the bytes stand for: sums
# in float32, and for integers the rounding of inputs.
BOUNDS = {"f32": 1e-5, "bf16": 1e-5, "fp8": 1e-5, "nf4": 1e-5, "int8": 1e-3, "int4": 0.02}


def values(kind: str, n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, PackedMatrix]:
    rows = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.02
    packed = PackedMatrix.empty(kind, n, k)
    packed.pack(rows)
    return rows, packed


def oracle_int8(packed: PackedMatrix, x: np.ndarray) -> np.ndarray:
    """int8 with inputs of as many bits, up to 14, as 32-bit sums leave room for."""
    columns = packed.k + packed.k % 2
    codes = packed.data.numpy().view(np.int8).reshape(-1, columns // 2, 16, 2)
    codes = codes.transpose(0, 2, 1, 3).reshape(-1, columns)[: packed.n, : packed.k]
    limit = np.float32(min(8191.0, np.floor(np.float32(2147483000.0) / np.float32(127 * columns))))
    largest = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.where(largest > 0, limit / np.where(largest > 0, largest, 1), 0)
    inputs = np.rint(x * inverse.astype(np.float32)).astype(np.int64)
    sums = inputs @ codes.astype(np.int64).T
    return sums * (largest / limit).astype(np.float64) * packed.scale.numpy()[: packed.n]


def oracle_int4(packed: PackedMatrix, x: np.ndarray) -> np.ndarray:
    """int4 with inputs in 8 bits and a scale for every 32 of them."""
    k = -(-packed.k // 32) * 32
    x = np.pad(x, ((0, 0), (0, k - packed.k))).reshape(len(x), -1, 32)
    largest = np.abs(x).max(axis=2, keepdims=True)
    inverse = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), 0)
    inputs = np.rint(x * inverse.astype(np.float32)) * (largest / np.float32(127))
    weights = np.pad(packed.unpack().numpy(), ((0, 0), (0, k - packed.k)))
    return inputs.reshape(len(x), k).astype(np.float64) @ weights.astype(np.float64).T


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_the_values_which_the_bytes_stand_for(kind: str, level: int) -> None:
    for n, k in SHAPES:
        _, packed = values(kind, n, k)
        dense = packed.unpack().double().numpy()
        for num_rows in NUM_ROWS if level else (1, 5, 13):
            x = torch.randn(num_rows, k, generator=torch.Generator().manual_seed(num_rows))
            bias = torch.linspace(-1, 1, n) * 1e-3
            y = packed.multiply(x, bias).double().numpy() - bias.double().numpy()
            wanted = x.double().numpy() @ dense.T
            scale = np.sqrt(
                (x.double().numpy() ** 2).sum(1, keepdims=True) @ (dense**2).sum(1)[None]
            )
            assert np.abs(y - wanted).max() <= (BOUNDS[kind] * scale + 1e-9).max(), (n, k, num_rows)
            if kind in ("int8", "int4"):
                exact = (oracle_int8 if kind == "int8" else oracle_int4)(packed, x.numpy())
                assert np.abs(y - exact).max() <= (2e-6 * scale + 1e-9).max(), (n, k, num_rows)


@pytest.mark.parametrize("columns", [1, 2, 33])
def test_a_float_tile_adds_products_of_six_rows_of_inputs(columns: int, level: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    panel, inputs = (torch.randn(columns, n, generator=generator) for n in (16, 6))
    sums = torch.randn(6, 16, generator=generator)
    wanted = sums.double() + inputs.double().T @ panel.double()
    native.on_all_threads().pg_float_tile(
        panel.data_ptr(), inputs.data_ptr(), columns, sums.data_ptr()
    )
    assert torch.allclose(sums.double(), wanted, rtol=0, atol=1e-5)


def hard_rows(n: int, k: int) -> torch.Tensor:
    """Outliers, zeros, ties of rounding, subnormals and numbers too large for a half."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(n, k, generator=generator) * 0.02
    rows[torch.rand(n, k, generator=generator) < 0.01] *= 30
    rows[torch.rand(n, k, generator=generator) < 0.01] = 0
    for row, (factor, offset) in enumerate(
        ((1e-6, 0.0), (1e6, 0.0), (0.0, 1e-40), (0.0, 3e-8), (0.0, -1e30), (0.0, 0.0), (0.0, -0.0))
    ):
        if row < n - 2:
            rows[row] = rows[row] * factor + offset
    rows[-1] = torch.arange(k).remainder(7) - 3.0
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_compiled_kernels_and_torch_write_and_read_the_same_bytes(
    kind: str, dtype: torch.dtype, level: int
) -> None:
    for n, k in SHAPES:
        for rows in (values(kind, n, k)[0].to(dtype), hard_rows(n, k).to(dtype)):
            packed, by_torch = PackedMatrix.empty(kind, n, k), PackedMatrix.empty(kind, n, k)
            packed.pack(rows)
            panels.pack(kind, rows, by_torch.data, by_torch.scale)
            assert torch.equal(packed.data, by_torch.data), (n, k)
            assert torch.equal(packed.scale, by_torch.scale), (n, k)
            read = panels.unpack(kind, k, packed.data, packed.scale, torch.arange(n))
            assert torch.equal(packed.unpack(), read), (n, k)


def test_the_scale_of_an_int4_group_has_the_least_squared_error_of_the_eight_tried() -> None:
    rows = hard_rows(37, 100).double().numpy()
    packed = PackedMatrix.empty("int4", 37, 100)
    packed.pack(torch.from_numpy(rows))
    found = packed.unpack().double().numpy()
    for n in range(8, 37):  # rows of a usual size
        for first in range(0, 100, 32):
            w = rows[n, first : first + 32]
            largest = w[np.abs(w).argmax()]
            errors = []
            for scale in (largest / -8, largest / 7.5):
                for _ in range(4):
                    codes = np.clip(np.rint(w / scale), -8, 7)
                    errors.append(((w - codes * np.float16(scale).astype(float)) ** 2).sum())
                    scale = (w * codes).sum() / (codes * codes).sum()
            error = ((w - found[n, first : first + 32]) ** 2).sum()
            assert error <= min(errors) * 1.001 + 1e-12, (n, first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_gets_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads(kind: str) -> None:
    _, packed = values(kind, 330, 576)
    x = torch.randn(250, 576)
    threads = torch.get_num_threads()
    y = packed.multiply(x)
    try:
        torch.set_num_threads(1)
        assert torch.equal(packed.multiply(x), y)
        torch.set_num_threads(3)
        for start, count in ((0, 1), (7, 2), (30, 5), (60, 11), (100, 12)):
            assert torch.equal(packed.multiply(x[start : start + count]), y[start : start + count])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_by_number_are_those_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = values(kind, 40, 70)
    whole, numbers = packed.unpack(), torch.tensor([39, 0, 17, 17, 16])
    assert torch.equal(packed.take(numbers), whole[numbers])
    assert packed.take(numbers[:0]).shape == (0, 70)
    for wrong in (-1, 40):
        with pytest.raises(ValueError, match=r"0\.\.39"):
            packed.take(torch.tensor([0, wrong]))
    monkeypatch.setattr(native, "library", lambda: None)
    assert torch.equal(packed.take(numbers), whole[numbers])
    assert torch.equal(packed.unpack(17, 33), whole[17:33])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rows_are_packed_as_their_values(kind: str) -> None:
    rows = torch.randn(37, 66).bfloat16()
    narrow, wide = PackedMatrix.empty(kind, 37, 66), PackedMatrix.empty(kind, 37, 66)
    narrow.pack(rows)
    wide.pack(rows.float())
    assert torch.equal(narrow.data, wide.data)
    assert torch.equal(narrow.scale, wide.scale)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_extremes_are_packed_without_harm(kind: str, level: int) -> None:
    rows = torch.zeros(18, 64)
    rows[1], rows[2], rows[3, 5] = 1e-40, -1e30, 60000.0
    packed = PackedMatrix.empty(kind, 18, 64)
    packed.pack(rows)
    back = packed.unpack()
    assert back.isfinite().all()
    assert torch.equal(back[0], torch.zeros(64))
    assert (back[3, 5] / 60000 - 1).abs() < 0.07
    y = packed.multiply(torch.stack([torch.zeros(64), torch.full((64,), 1e-3)]))
    assert torch.equal(y[0], torch.zeros(18))
    assert y.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_is_not_finite_spoils_its_own_row_and_is_never_hidden(
    kind: str, value: float, level: int
) -> None:
    _, packed = values(kind, 20, 100)
    x = torch.randn(14, 100, generator=torch.Generator().manual_seed(1))
    sound = packed.multiply(x)
    for row, column in ((1, 5), (6, 98), (13, 40)):
        x[row, column] = value
    spoiled = packed.multiply(x)
    for row in range(14):
        if row in (1, 6, 13):
            assert not spoiled[row].isfinite().any()
        else:
            assert torch.equal(spoiled[row], sound[row])


def test_products_by_torch_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        _, packed = values(kind, 50, 200)
        x = torch.randn(3, 4, 200)
        bias = torch.randn(50)
        y = packed.multiply(x, bias)
        with monkeypatch.context() as patched:
            patched.setattr(native, "library", lambda: None)
            by_torch = packed.multiply(x, bias)
        assert by_torch.shape == y.shape == (3, 4, 50)
        assert (by_torch - y).norm() <= BOUNDS[kind] * y.norm()


def test_int4_is_closer_than_rounding_to_the_largest_value() -> None:
    rows, packed = values("int4", 64, 512)
    groups = rows.view(64, -1, 32)
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = largest / -8
    plain = ((groups / scale).round().clamp(-8, 7) * scale).view(64, 512)
    assert (packed.unpack() - rows).norm() < 0.96 * (plain - rows).norm()


def test_rows_of_another_size_are_refused() -> None:
    packed = PackedMatrix.empty("int8", 16, 32)
    with pytest.raises(ValueError, match="16 x 32"):
        packed.pack(torch.zeros(16, 31))
    with pytest.raises(ValueError, match="32 wide"):
        packed.multiply(torch.zeros(2, 31))
    with pytest.raises(ValueError, match="needs"):
        PackedMatrix("int8", 16, 64, packed.data, packed.scale)
