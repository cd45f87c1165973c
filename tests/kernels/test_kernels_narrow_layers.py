"""Layers in fewer bits by torch's operations, beside packed layers of the same kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paligemma.kernels import narrow_layers
from paligemma.kernels.narrow_layers import KINDS, NarrowEmbedding, NarrowLinear
from paligemma.kernels.packed_layers import PackedEmbedding, PackedLinear


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 147), (7, 269)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_has_the_values_of_a_packed_one_and_multiplies_with_them(
    kind: str, height: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow_layers, "_ROUNDED_AT_ONCE", 10 * width)
    monkeypatch.setattr(narrow_layers, "_WIDENED_AT_ONCE", 5 * width)
    weight, x = drawn(height, width), drawn(2, 3, width, seed=1).to(dtype)
    layer = NarrowLinear(kind, width, height, bias=True, dtype=dtype)
    layer.bias = nn.Parameter(drawn(height, seed=2).to(dtype), requires_grad=False)
    assert layer.device.type == "meta"
    layer.quantise(weight)
    packed = PackedLinear(kind, width, height, bias=False)
    packed.quantise(weight)
    assert torch.equal(layer.dense(), packed.dense())
    found = layer(x)
    assert found.dtype == dtype
    wanted = nn.functional.linear(x.float(), packed.dense(), layer.bias.float())
    error = (found.float() - wanted).norm() / wanted.norm()
    assert error < (1e-6 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_an_embedding_gives_rows_and_logits_of_its_tables(kind: str, is_tied: bool) -> None:
    table, other, hidden = drawn(500, 40), drawn(500, 40, seed=3), drawn(2, 20, 40, seed=1)
    packed = PackedEmbedding(kind, 500, 40, is_tied=is_tied)
    narrow = NarrowEmbedding(kind, 500, 40, is_tied=is_tied, dtype=torch.bfloat16)
    both: tuple[Any, Any] = packed, narrow
    for layer in both:
        layer.quantise(table)
        if not is_tied:
            layer.quantise_head(other)
    tokens = torch.tensor([[3, 0, 499], [3, 17, 21]])
    assert torch.equal(narrow(tokens), packed(tokens).bfloat16())
    assert torch.equal(narrow.rows(7, 5), packed.rows(7, 5).bfloat16())
    hidden = hidden.bfloat16()
    logits = narrow.logits(hidden)
    wanted = hidden.float() @ packed.head.unpack().T
    assert logits.dtype == torch.float32
    best, places = wanted.topk(200)
    assert torch.allclose(logits.gather(-1, places), best, rtol=1e-5, atol=1e-4)
    assert (logits - wanted).norm() / wanted.norm() < 6e-3


@pytest.mark.parametrize(
    ("kind", "bytes_a_weight"), [("int8", 1 + 4 / 2048), ("fp8", 1 + 4 / 2048), ("int4", 0.5625)]
)
def test_a_matrix_takes_the_bytes_of_its_kind(kind: str, bytes_a_weight: float) -> None:
    layer = NarrowLinear(kind, 2048, 16, bias=False, dtype=torch.bfloat16)
    layer.quantise(drawn(16, 2048))
    assert sum(one.nbytes for one in layer.buffers()) == bytes_a_weight * 2048 * 16
    with pytest.raises(ValueError, match="16 x 2048"):
        layer.quantise(drawn(2048, 16))
