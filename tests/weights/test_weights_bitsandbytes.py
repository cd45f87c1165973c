"""Checkpoints that bitsandbytes saved in four or eight bits, and those of other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.adapt.quant import Quant
from paligemma.errors import CheckpointError
from paligemma.kernels.nf4 import CODE, NF4Linear, tables
from paligemma.kernels.packed_layers import packed_weights
from paligemma.weights.bitsandbytes import Widened
from paligemma.weights.load import OpenCheckpoint, load_model
from paligemma.weights.save import convert, save_model

Make = Callable[..., Any]
Q = "language_model.model.layers.0.self_attn.q_proj.weight"
STATE = ".quant_state.bitsandbytes__nf4"
RECORDED = Path(__file__).parents[1] / "kernels" / "nf4_bitsandbytes.npz"


def as_bytes(state: dict[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def four_bits(key: str, weight: Tensor, *, nested: bool) -> tuple[dict[str, Tensor], Tensor]:
    """What bitsandbytes saves of a weight, and the weight that it stands for."""
    layer = NF4Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float32)
    layer.quantise(weight.float())
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16"}
    parts = {key: layer.packed[:, None], f"{key}.quant_map": torch.tensor(CODE)}
    levels = tables(torch.device("cpu"))[1]
    if nested:
        parts[f"{key}.absmax"] = layer.scales
        parts[f"{key}.nested_absmax"] = layer.scale_steps
        parts[f"{key}.nested_quant_map"] = levels.clone()
        state |= {"nested_blocksize": 256, "nested_offset": layer.scale_mean.item()}
        state["nested_dtype"] = "float32"
    else:
        steps = layer.scale_steps.repeat_interleave(256)[: len(layer.scales)]
        parts[f"{key}.absmax"] = levels[layer.scales.int()] * steps + layer.scale_mean
    parts[key + STATE] = as_bytes(state | {"shape": list(weight.shape)})
    return parts, layer.dense().bfloat16()


def eight_bits(key: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scales = weight.float().abs().amax(dim=1)
    codes = (weight.float() / scales[:, None] * 127).round().to(torch.int8)
    parts = {key: codes, key.replace(".weight", ".SCB"): scales}
    parts[f"{key}_format"] = torch.tensor(0, dtype=torch.uint8)
    return parts, codes.float() * (scales[:, None] / 127)


@pytest.fixture(params=["nested", "single", "eight"])
def folders(
    request: pytest.FixtureRequest, make_config: Make, make_model: Make, tmp_path: Path
) -> tuple[Path, Path]:
    """A checkpoint as bitsandbytes saves it, and a plain one of the values it stands for."""
    config = make_config(2, width=64, mlp_dim=64, head_dim=16)
    plain = save_model(make_model(config), tmp_path / "plain", dtype="bfloat16")
    small = save_model(make_model(config), tmp_path / "small", dtype="bfloat16")
    tensors = load_file(plain / "model.safetensors")
    saved = dict(tensors)
    for key, weight in tensors.items():
        if "_proj.weight" in key and "language_model" in key:
            parts, value = (
                eight_bits(key, weight)
                if request.param == "eight"
                else four_bits(key, weight, nested=request.param == "nested")
            )
            saved |= parts
            tensors[key] = value
    save_file(tensors, plain / "model.safetensors")
    save_file(saved, small / "model.safetensors")
    change_config(small, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    return small, plain


def change_config(folder: Path, stated: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = stated
    path.write_text(json.dumps(config))


def test_such_a_checkpoint_is_the_plain_one_of_its_values(folders: tuple[Path, Path]) -> None:
    small, plain = (load_model(folder, dtype="float32") for folder in folders)
    assert small.config == plain.config
    wanted = dict(plain.named_parameters())
    assert all(torch.equal(p, wanted[name]) for name, p in small.named_parameters())


def test_it_is_packed_while_it_is_read_and_converted(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    models = []
    for folder in folders:
        with OpenCheckpoint(folder) as opened:
            models.append(opened.load(quant=Quant.parse("int4")))
    models.append(load_model(convert(folders[0], tmp_path / "packed", quant="int4")))
    first, *others = (
        {name: w.matrix.unpack() for name, w in packed_weights(model).items()} for model in models
    )
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())


def test_recorded_bytes_of_bitsandbytes_stand_for_its_values() -> None:
    with np.load(RECORDED) as file:
        theirs = {name: torch.from_numpy(file[name]) for name in file.files}
    parts = {
        "w": theirs["packed"],
        "w.absmax": theirs["scales"],
        "w.quant_map": torch.tensor(CODE),
        "w.nested_absmax": theirs["steps"],
        "w.nested_quant_map": tables(torch.device("cpu"))[1],
    }
    state = {"blocksize": 64, "nested_blocksize": 256, "nested_offset": theirs["mean"].item()}
    found = Widened("w", (96, 352), torch.float32, state).read(parts.__getitem__)
    assert torch.allclose(found, theirs["dense"], rtol=1e-6, atol=1e-7)


@pytest.fixture
def small(make_config: Make, make_model: Make, tmp_path: Path) -> Path:
    config = make_config(1, width=64)
    return save_model(make_model(config), tmp_path / "small", dtype="bfloat16")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [48, 65]},
        {"shape": [48, -64]},
        {"shape": [1 << 40, 1]},
        {"shape": 5},
        {"blocksize": 0},
        {"blocksize": 1 << 40},
        {"nested_blocksize": 2},
        {"nested_offset": "x"},
        {"dtype": "int3"},
    ],
)
def test_sizes_beyond_sense_are_refused_in_a_sentence(small: Path, change: dict[str, Any]) -> None:
    path = small / "model.safetensors"
    tensors = load_file(path)
    parts, _ = four_bits(Q, tensors[Q], nested=True)
    state = json.loads(bytes(parts[Q + STATE].tolist())) | change
    save_file(tensors | parts | {Q + STATE: as_bytes(state)}, path)
    with pytest.raises(CheckpointError, match=r"must have its scales and sizes|should be") as found:
        load_model(small)
    assert len(str(found.value).splitlines()) <= 2


@pytest.mark.parametrize("missing", ["absmax", "nested_absmax", "nested_quant_map", "quant_map"])
def test_a_part_that_is_missing_is_refused_in_a_sentence(small: Path, missing: str) -> None:
    path = small / "model.safetensors"
    tensors = load_file(path)
    parts, _ = four_bits(Q, tensors[Q], nested=True)
    parts.pop(f"{Q}.{missing}")
    save_file(tensors | parts, path)
    with pytest.raises(CheckpointError, match="must have its scales and sizes beside it"):
        load_model(small)


def test_parts_of_another_dtype_are_refused_in_a_sentence(small: Path) -> None:
    path = small / "model.safetensors"
    tensors = load_file(path)
    eight, _ = eight_bits(Q, tensors[Q])
    four, _ = four_bits(Q, tensors[Q], nested=False)
    # A plain weight beside scales, and magnitudes that are codes of a second table.
    for parts in (eight | {Q: tensors[Q]}, four | {f"{Q}.absmax": four[f"{Q}.absmax"].byte()}):
        save_file(tensors | parts, path)
        with pytest.raises(CheckpointError, match="must have its scales and sizes beside it"):
            load_model(small)


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "names gptq"),
        ({"quant_method": "awq"}, "names awq"),
        ({"quant_method": "torchao"}, "names torchao"),
        ({"quant_method": "compressed-tensors"}, "names compressed-tensors"),
        (["int4"], r"names \['int4'\]"),
    ],
)
def test_bits_of_other_programs_are_refused_by_name(small: Path, stated: object, name: str) -> None:
    change_config(small, stated)
    path = small / "model.safetensors"
    tensors = load_file(path)
    tensors[Q.replace("weight", "qweight")] = torch.zeros(8, 48, dtype=torch.int32)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"{name}; take the unquantised checkpoint"):
        load_model(small)
