"""Four-bit layers: bitsandbytes' numbers, dequantised products forward and backward, their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paligemma.kernels.nf4 import NF4Linear

# What bitsandbytes 0.50.2 made on a CPU of a matrix float32[96, 352] with a row of zeros and an
# outlier: quantize_4bit(blocksize=64, compress_statistics=True, quant_type="nf4").
RECORDED = Path(__file__).parent / "nf4_bitsandbytes.npz"


def made(weight: Tensor, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> NF4Linear:
    layer = NF4Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=dtype)
    layer.quantise(weight)
    if layer.bias is not None:
        layer.bias.data = torch.randn(len(weight), generator=torch.Generator().manual_seed(3))
    return layer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bytes_and_values_are_those_of_bitsandbytes() -> None:
    with np.load(RECORDED) as file:
        theirs = {name: torch.from_numpy(file[name]) for name in file.files}
    layer = made(theirs["weight"])
    assert torch.equal(layer.packed, theirs["packed"])
    assert torch.equal(layer.scale_steps, theirs["steps"])
    assert torch.equal(layer.scale_mean, theirs["mean"])
    # Of scales that lie halfway between two bytes, theirs takes the farther at times.
    assert (layer.scales != theirs["scales"]).float().mean() < 0.01
    assert (layer.scales.int() - theirs["scales"].int()).abs().max() <= 1
    layer.scales = theirs["scales"]
    assert torch.allclose(layer.dense(), theirs["dense"], rtol=1e-6, atol=1e-9)


def test_every_weight_becomes_the_nearest_of_sixteen_values_of_its_block() -> None:
    weight = drawn(64, 130)
    dense = made(weight).dense()
    blocks, near = weight.flatten().view(-1, 64), dense.flatten().view(-1, 64)
    assert all(len(block.unique()) <= 16 for block in near)
    # The widest gap of the code is 0.31 of the scale; the scales are off by less than a hundredth.
    assert ((blocks - near).abs() <= 0.17 * blocks.abs().amax(dim=1, keepdim=True)).all()
    assert (dense - weight).norm() / weight.norm() < 0.1


@pytest.mark.parametrize(
    ("width", "height"), [(64, 8), (66, 7), (1, 1), (50, 33), (1152, 4304 // 16), (4304, 72)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_the_dequantised_matrix(
    width: int, height: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows in several pieces.
    monkeypatch.setattr("paligemma.kernels.nf4._CPU_WEIGHTS", 1 << 14)
    layer = made(drawn(height, width), bias=bias)
    dense = layer.dense()
    assert dense.shape == (height, width)
    x, other = (drawn(2, 3, width, seed=1).requires_grad_() for _ in range(2))
    y, expected = layer(x), torch.nn.functional.linear(other, dense, layer.bias)
    assert torch.allclose(y, expected, rtol=1e-5, atol=2e-6 * float(expected.detach().abs().max()))
    seed = drawn(2, 3, height, seed=2)
    y.backward(seed)
    expected.backward(seed)
    assert x.grad is not None
    assert other.grad is not None
    assert torch.allclose(x.grad, other.grad, rtol=1e-5, atol=1e-4)
    assert layer.bias is None or layer.bias.grad is None


# Gemma 2 9B: query, key, output of attention, gate and down; a third of gate's and down's rows.
@pytest.mark.parametrize(
    ("width", "height"), [(3584, 4096), (3584, 2048), (4096, 3584), (3584, 4778), (14336, 1194)]
)
def test_layers_of_the_ten_billion_model_hold_at_every_width(width: int, height: int) -> None:
    layer = made(drawn(height, width) * 0.02, dtype=torch.bfloat16)
    stored = sum(one.numel() * one.element_size() for one in layer.buffers())
    assert stored / layer.num_weights <= 0.52
    x = drawn(3, width).bfloat16().requires_grad_()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    dense = layer.dense()
    expected = x.detach().float() @ dense.T
    assert torch.allclose(y.float(), expected, rtol=2**-8, atol=2**-8)
    assert x.grad is not None
    assert torch.allclose(x.grad.float(), dense.sum(dim=0).expand(3, -1), rtol=2**-7, atol=2**-6)


def test_under_autocast_inputs_are_rounded_as_for_a_plain_layer() -> None:
    layer = made(drawn(32, 64))
    x = drawn(5, 64).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), x.detach() @ layer.dense().T, rtol=0.05, atol=0.3)
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_what_is_no_number_does_not_become_one() -> None:
    weight = drawn(4, 64)
    weight[1, 3] = float("nan")
    assert made(weight).dense().isnan().any()
