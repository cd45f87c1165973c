"""Models whose weights are packed while they are read: what they compute, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dequantised import dequantise
from opened_models import logits, opened
from torch import Tensor

from paligemma.adapt.lora import Adapter, LoraConfig, attach, merge
from paligemma.adapt.quant import Quant
from paligemma.errors import CheckpointError, ConfigError
from paligemma.kernels.packed_layers import packed_weights
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import OpenCheckpoint
from paligemma.weights.save import save_model

Make = Callable[..., Any]
TABLES = {"text.embed.weight", "text.embed.head"}


@pytest.fixture(params=[1, 2])
def folder(
    request: pytest.FixtureRequest, make_config: Make, make_model: Make, tmp_path: Path
) -> Path:
    """A checkpoint of either generation."""
    config = make_config(request.param, head_dim=16 if request.param == 2 else 12)
    return save_model(make_model(config), tmp_path / "model", dtype="bfloat16")


def plain(folder: Path) -> PaliGemmaModel:
    with OpenCheckpoint(folder) as checkpoint:
        return checkpoint.load(dtype="float32")


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("quant", "error"),
    [("bf16", 1e-5), ("int8", 0.1), ("fp8", 0.6), ("int4", 0.8), ("int4:vision.mlp", 0.2)],
)
def test_packed_models_answer_near_the_plain_one(folder: Path, quant: str, error: float) -> None:
    model = opened(folder, quant)
    assert model.dtype == torch.float32
    assert distance(logits(model), logits(plain(folder))) < error


def test_a_packed_model_computes_with_the_values_that_its_weights_stand_for(folder: Path) -> None:
    model = opened(folder, "fp8")
    found = logits(model)
    dequantise(model)
    assert distance(logits(model), found) < 1e-4


def test_what_is_named_gets_the_kind_and_the_rest_is_bfloat16(folder: Path) -> None:
    def kinds(quant: str) -> dict[str, str]:
        found = packed_weights(opened(folder, quant))
        return {name: weight.kind for name, weight in found.items()}

    whole, decoder = kinds("int4"), kinds("int4:decoder,projector")
    assert whole["text.embed.weight"] == "int8"
    assert whole["vision.patch_embed.proj.weight"] == "bf16"
    assert {kind for name, kind in whole.items() if ".blocks." in name} == {"int4"}
    assert decoder["text.embed.weight"] == "bf16"
    assert {kind for name, kind in decoder.items() if "vision." in name} == {"bf16"}
    assert decoder["text.blocks.0.mlp.up.weight"] == decoder["projector.weight"] == "int4"
    assert kinds("int4,head=fp8")["text.embed.weight"] == "fp8"
    assert kinds("bf16")["text.embed.weight"] == "bf16"
    assert kinds("int8:decoder,head=int4")["text.embed.weight"] == "int4"


@pytest.mark.parametrize(
    "wrong",
    [
        *("int3", "", "int4,decoder", "int4:decoder,head=int3", "int4:mlp", "nf4,head=int8"),
        *("int4,head=int8,head=bf16", "int4:head=int8:decoder"),
    ],
)
def test_what_is_no_quantisation_is_refused_in_a_sentence(wrong: str) -> None:
    with pytest.raises(ConfigError):
        Quant.parse(wrong)


def test_float16_and_float32_files_are_packed_too(
    make_config: Make, make_model: Make, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    for dtype in ("float16", "float32"):
        save_model(model, tmp_path / dtype, dtype=dtype)
        found = opened(tmp_path / dtype, "int8")
        assert distance(logits(found), logits(plain(tmp_path / dtype))) < 0.1
        assert {p.dtype for p in found.parameters()} == {torch.float32}


def test_an_npz_and_a_hub_folder_of_one_model_are_packed_alike(
    make_config: Make, make_model: Make, tmp_path: Path
) -> None:
    model = make_model(make_config(2))
    for layout in ("hf", "npz"):
        save_model(model, tmp_path / layout, layout=layout)
    hf, npz = (opened(tmp_path / layout, "int4") for layout in ("hf", "npz"))
    mine, theirs = hf.state_dict(), npz.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_head_of_its_own_is_packed_beside_the_table(
    make_config: Make, make_model: Make, tmp_path: Path
) -> None:
    config = make_config(1)
    config = replace(config, text=replace(config.text, tied_head=False))
    save_model(make_model(config), tmp_path / "model")
    model = opened(tmp_path / "model", "int8")
    assert packed_weights(model).keys() >= TABLES
    assert distance(logits(model), logits(plain(tmp_path / "model"))) < 0.1


def test_the_position_table_is_resized_as_ever(folder: Path) -> None:
    model = opened(folder, "int8", image_size_px=42)
    with OpenCheckpoint(folder, image_size_px=42) as checkpoint:
        wanted = checkpoint.load(dtype="float32")
    assert torch.equal(model.vision.pos_embedding, wanted.vision.pos_embedding)
    assert distance(logits(model), logits(wanted)) < 0.1


@pytest.mark.parametrize("conventions", ["big_vision", "transformers"])
def test_the_factor_of_embeddings_is_rounded_as_the_file_is(folder: Path, conventions: Any) -> None:
    with OpenCheckpoint(folder, conventions=conventions) as checkpoint:
        wanted = checkpoint.load().text.embed_scale
    assert opened(folder, "int4", conventions=conventions).text.embed_scale == wanted


def test_nothing_of_the_file_stays_mapped(folder: Path) -> None:
    model = opened(folder, "int8")
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(folder) not in maps.read_text()
    assert logits(model).isfinite().all()


def test_an_adapter_works_beside_packed_weights_and_is_not_merged_into_them(folder: Path) -> None:
    exact, few = plain(folder), opened(folder, "int8")
    config = LoraConfig(rank=4, parts=("decoder", "vision", "projector"), dora=True)
    for model in (exact, few):
        before = logits(model)
        adapter = Adapter.new(exact, config)
        for number, update in enumerate(adapter.updates.values()):
            generator = torch.Generator().manual_seed(number)
            torch.nn.init.normal_(update.up, std=0.1, generator=generator)
        attach(model, adapter)
        assert distance(logits(model), before) > 0.1
    assert distance(logits(few), logits(exact)) < 0.3
    with pytest.raises(ConfigError, match="is quantised"):
        merge(few)


def test_a_packed_model_is_not_saved_as_a_plain_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only a plain model can be saved"):
        save_model(opened(folder, "int4"), tmp_path / "out")


@pytest.mark.parametrize("quant", ["int8", "int4", "fp8", "bf16", "nf4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_never_rounded_to_some(
    quant: str, value: float, make_config: Make, make_model: Make, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    model.text.blocks[1].mlp.down.weight.data[3, 5] = value
    folder = save_model(model, tmp_path / "model", dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.down\.weight has NaN or infinity"):
        opened(folder, quant)
