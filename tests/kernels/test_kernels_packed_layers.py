"""Packed layers beside plain ones of the values that they stand for."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from paligemma.kernels.packed_layers import (
    PackedEmbedding,
    PackedLinear,
    PackedStore,
    stores_of,
)

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
    layer = PackedLinear(PackedStore("one", kind, [height], width), bias=True)
    layer.quantise(weight)
    layer.bias = torch.nn.Parameter(drawn(height, seed=2), requires_grad=False)
    assert distance(layer.dense(), weight) < ERROR[kind]
    found = layer(x)
    assert found.dtype == layer.dtype == torch.float32
    wanted = torch.nn.functional.linear(x, layer.dense(), layer.bias)
    assert distance(found, wanted) < 0.01  # inputs are quantised too


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_joined_layers_are_the_layers_alone(kind: str, interleaved: bool) -> None:
    sizes = [48, 48] if interleaved else [64, 16, 32]
    store = PackedStore("all", kind, sizes, 40, interleaved=interleaved)
    weights = [drawn(size, 40, seed=place) for place, size in enumerate(sizes)]
    layers = [PackedLinear(store, place, bias=False) for place in range(len(sizes))]
    for place in reversed(range(len(sizes))):
        assert place in store.missing
        layers[place].quantise(weights[place])
    assert not store.missing
    x = drawn(3, 40, seed=9)
    for layer, weight in zip(layers, weights, strict=True):
        alone = PackedLinear(PackedStore("one", kind, [len(weight)], 40), bias=False)
        alone.quantise(weight)
        assert torch.equal(layer.dense(), alone.dense())
        assert torch.equal(layer(x), alone(x))
    joined = store.matrix.unpack()
    panels = [layer.dense().split(16) for layer in layers]
    order = (
        [half for pair in zip(*panels, strict=True) for half in pair]
        if interleaved
        else [panel for one in panels for panel in one]
    )
    assert torch.equal(joined, torch.cat(order))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_rows_are_packed_as_few(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = drawn(130, 24).to(dtype)
    whole = PackedLinear(PackedStore("one", "int4", [130], 24), bias=False)
    whole.quantise(weight)
    monkeypatch.setattr("paligemma.kernels.packed_layers._ROWS_AT_ONCE", 32)
    parts = PackedLinear(PackedStore("one", "int4", [130], 24), bias=False)
    parts.quantise(weight)
    assert torch.equal(parts.matrix.data, whole.matrix.data)


def test_another_shape_is_no_weight_of_a_layer() -> None:
    layer = PackedLinear(PackedStore("one", "int8", [8], 6), bias=False)
    with pytest.raises(ValueError, match="8, 6"):
        layer.quantise(drawn(6, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_gives_the_rows_and_products_of_one_table(kind: str) -> None:
    table = drawn(130, 32)
    embedding = PackedEmbedding(PackedStore("table", kind, [130], 32))
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
    stores = [PackedStore(name, "int8", [40], 16) for name in ("table", "head")]
    embedding = PackedEmbedding(*stores)
    embedding.quantise(drawn(40, 16))
    embedding.quantise_head(drawn(40, 16, seed=1))
    hidden = drawn(3, 16, seed=2)
    assert distance(embedding.logits(hidden), hidden @ drawn(40, 16, seed=1).T) < 0.02
    assert not embedding.is_tied
    assert [store.name for store in stores_of(embedding)] == ["table", "head"]


def test_a_copy_of_joined_layers_shares_a_matrix_of_its_own() -> None:
    store = PackedStore("all", "int8", [16, 32], 8)
    layers = torch.nn.ModuleList(PackedLinear(store, place, bias=False) for place in range(2))
    for layer in layers:
        layer.quantise(drawn(layer.out_features, 8))
    copied = deepcopy(layers)
    (own,) = stores_of(copied)
    assert own.matrix.data.data_ptr() != store.matrix.data.data_ptr()
    assert torch.equal(copied[1].dense(), layers[1].dense())
    copied[0].quantise(torch.zeros(16, 8))
    assert not own.matrix.unpack()[:16].any()
    assert layers[0].dense().any()
