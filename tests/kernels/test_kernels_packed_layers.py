"""Packed layers beside plain ones of the values that they stand for."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from paligemma.kernels.packed_layers import PackedEmbedding, PackedLinear, packed_weights

KINDS = ["bf16", "int8", "int4", "fp8"]
# Largest relative error of normal weights.
ERROR = {"bf16": 0.003, "int8": 0.01, "int4": 0.1, "fp8": 0.04}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 588 // 4), (7, 4304 // 16)])
def test_a_packed_layer_multiplies_with_values_near_its_weights(
    kind: str, height: int, width: int
) -> None:
    weight, x = drawn(height, width), drawn(2, 3, width, seed=1)
    layer = PackedLinear(kind, width, height, bias=True)
    layer.quantise(weight)
    layer.bias = torch.nn.Parameter(drawn(height, seed=2), requires_grad=False)
    assert distance(layer.dense(), weight) < ERROR[kind]
    found = layer(x)
    assert found.dtype == layer.dtype == torch.float32
    wanted = torch.nn.functional.linear(x, layer.dense(), layer.bias)
    assert distance(found, wanted) < 0.01  # inputs are quantised too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_rows_are_packed_as_few(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = drawn(130, 24).to(dtype)
    whole = PackedLinear("int4", 24, 130, bias=False)
    whole.quantise(weight)
    monkeypatch.setattr("paligemma.kernels.packed_matrix._ROWS_AT_ONCE", 32)
    parts = PackedLinear("int4", 24, 130, bias=False)
    parts.quantise(weight)
    assert torch.equal(parts.matrix.data, whole.matrix.data)


def test_another_shape_is_no_weight_of_a_layer() -> None:
    layer = PackedLinear("int8", 6, 8, bias=False)
    with pytest.raises(ValueError, match="8 x 6"):
        layer.quantise(drawn(6, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_gives_the_rows_and_products_of_one_table(kind: str) -> None:
    table = drawn(130, 32)
    embedding = PackedEmbedding(kind, 130, 32, is_tied=True)
    embedding.quantise(table)
    dense = embedding.matrix.unpack()
    ids = torch.tensor([[129, 0, 7], [7, 64, 0]])
    assert torch.equal(embedding(ids), dense[ids])
    assert embedding(ids[:, :0]).shape == (2, 0, 32)
    assert torch.equal(embedding.rows(60, 10), dense[60:70])
    hidden = drawn(2, 32, seed=3)
    assert distance(embedding.logits(hidden), hidden @ dense.T) < 0.01
    assert embedding.is_tied
    assert (embedding.num_tokens, embedding.width) == (130, 32)


def test_a_head_of_its_own_makes_the_logits() -> None:
    embedding = PackedEmbedding("int8", 40, 16, is_tied=False)
    embedding.quantise(drawn(40, 16))
    embedding.quantise_head(drawn(40, 16, seed=1))
    hidden = drawn(3, 16, seed=2)
    assert distance(embedding.logits(hidden), hidden @ drawn(40, 16, seed=1).T) < 0.02
    assert not embedding.is_tied
    model = torch.nn.ModuleDict({"embed": embedding})
    assert list(packed_weights(model)) == ["embed.weight", "embed.head"]


def test_a_copy_of_a_layer_has_a_matrix_of_its_own() -> None:
    layer = PackedLinear("int8", 8, 16, bias=False)
    layer.quantise(drawn(16, 8))
    copied = deepcopy(layer)
    assert torch.equal(copied.dense(), layer.dense())
    copied.quantise(torch.zeros(16, 8))
    assert not copied.dense().any()
    assert copied.weight.panels.data_ptr() == copied.matrix.data.data_ptr()
    assert layer.dense().any()


def test_a_layer_without_weights_has_no_matrix_and_takes_no_memory() -> None:
    layer = PackedLinear("int8", 8, 16, bias=False)
    assert layer.weight.is_empty
    assert not list(layer.buffers())
    with pytest.raises(ValueError, match="no weights yet"):
        layer(drawn(1, 8))
