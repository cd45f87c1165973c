"""Linear maps in bfloat16, by every route a CPU may take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paligemma.kernels import linear as linear_module
from paligemma.kernels.linear import Linear, linear, logits_product, widens_bfloat16

# One bfloat16 keeps eight bits: rounding moves a number by at most 2^-9 of it.
HALF_STEP = 2**-9


@pytest.fixture
def widening(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bfloat16 arithmetic, whatever this one has."""
    monkeypatch.setattr(linear_module, "widens_bfloat16", lambda: True)


def draw(num_rows: int, *, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """x [num_rows, 96], weight [700, 96] and bias [700]; products of order one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 96, generator=generator).to(dtype)
    weight = (torch.randn(700, 96, generator=generator) / 96**0.5).to(dtype)
    return x, weight, torch.randn(700, generator=generator).to(dtype)


@pytest.mark.usefixtures("widening")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3, 16, 40])
def test_a_widened_product_is_rounded_once(
    num_rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "_CHUNK_ELEMENTS", 1)  # blocks of 256, 256 and 188
    x, weight, bias = draw(num_rows)
    exact = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    with torch.no_grad():
        actual = linear(x, weight, bias if with_bias else None)
    assert actual.dtype == torch.bfloat16
    assert actual.shape == (num_rows, 700)
    # Twice: torch rounds the product before it adds a bias to a single row.
    bound = 2 * HALF_STEP * (exact.abs() + bias.double().abs()) + 1e-5
    assert bool(((actual.double() - exact).abs() <= bound).all())


@pytest.mark.usefixtures("widening")
def test_leading_axes_stay_as_they_are() -> None:
    x, weight, bias = draw(32)
    with torch.no_grad():
        flat = linear(x, weight, bias)
        assert torch.equal(linear(x.view(2, 16, 96), weight, bias), flat.view(2, 16, 700))
        assert linear(x[:1].view(1, 1, 96), weight).shape == (1, 1, 700)
        assert linear(x[:0], weight).shape == (0, 700)


@pytest.mark.usefixtures("widening")
def test_under_autograd_the_product_is_torch_s_own() -> None:
    x, weight, bias = draw(40)
    layer = Linear(96, 700).to(torch.bfloat16)
    layer.load_state_dict({"weight": weight, "bias": bias})
    y = layer(x)
    assert torch.equal(y, F.linear(x, weight, bias))
    y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.usefixtures("widening")
@pytest.mark.parametrize("num_rows", [1, 40])
def test_in_float32_the_product_is_torch_s_own(num_rows: int) -> None:
    x, weight, bias = draw(num_rows, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("num_rows", [1, 40])
def test_with_bfloat16_units_the_product_is_torch_s_own(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "widens_bfloat16", lambda: False)
    x, weight, bias = draw(num_rows)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64", "bf16": False}, False),
        ({}, False),
    ],
)
def test_only_x86_without_bfloat16_units_widens(
    capabilities: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert widens_bfloat16.__wrapped__() is expected


def _head(num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a table of 3,000 narrow rows, and their product in float64."""
    generator = torch.Generator().manual_seed(num)
    hidden = torch.randn(num, 64, generator=generator).bfloat16()
    table = torch.randn(3000, 64, generator=generator).bfloat16()
    return hidden, table, hidden.double() @ table.double().T


@pytest.mark.parametrize("num", [1, 5, 40])
@torch.no_grad()
def test_the_best_logits_of_narrow_weights_are_those_of_float32(num: int) -> None:
    hidden, table, expected = _head(num)
    found = logits_product(hidden, table)
    assert found.dtype == torch.float32
    rounded = F.linear(hidden, table).float()
    # What is cured: rounded logits around 25 lie an eighth apart, and the best ones are equal.
    assert (rounded.topk(40).values.diff() == 0).any()
    best = expected.topk(40, dim=1)
    assert torch.equal(found.argmax(1), best.indices[:, 0])
    values = found.gather(1, best.indices)
    torch.testing.assert_close(values.double(), best.values, rtol=1e-5, atol=1e-5)
    # The others are at most rounded.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-3)
    share = found.softmax(1).gather(1, best.indices[:, :1])
    torch.testing.assert_close(
        share.double(), expected.softmax(1).gather(1, best.indices[:, :1]), rtol=1e-3, atol=0
    )


@torch.no_grad()
def test_logits_keep_their_shape_and_are_not_rounded_under_autocast() -> None:
    hidden, table, _ = _head(6)
    wide = hidden.float().view(2, 3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_product(wide, table.float())
    assert torch.equal(found, F.linear(wide, table.float()))
    assert logits_product(hidden.view(2, 3, 64), table).shape == (2, 3, 3000)
    assert logits_product(hidden[:0], table).shape == (0, 3000)


def test_logits_of_narrow_weights_can_be_trained() -> None:
    hidden, table, _ = _head(3)
    table.requires_grad_()
    logits_product(hidden, table).square().mean().backward()
    assert table.grad is not None
    assert table.grad.any()
