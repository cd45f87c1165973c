"""Strict loading, mapping, resizing, and saving that leaves nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from paligemma.errors import CheckpointError, ConfigError
from paligemma.model.siglip import resize_position_table
from paligemma.weights import load as load_module
from paligemma.weights import model_files
from paligemma.weights import save as save_module
from paligemma.weights.load import OpenCheckpoint, load_model
from paligemma.weights.npz import NpzWriter
from paligemma.weights.save import convert, save_model


def test_every_fault_of_safetensors_is_named_in_one_error(
    make_config, make_model, tmp_path: Path
) -> None:
    save_model(make_model(make_config(2)), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    for key in ("language_model.model.norm.weight", "multi_modal_projector.linear.bias"):
        del tensors[key]
    tensors["language_model.model.layers.3.mlp.up_proj.weight"] = torch.zeros(48, 32)
    tensors["language_model.model.layers.0.mlp.up_proj.weight"] = torch.zeros(32, 48)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "hf")
    message = str(caught.value)
    assert "has 4 faults" in message
    assert "missing: language_model.model.norm.weight (32,)" in message
    assert "missing: multi_modal_projector.linear.bias (32,)" in message
    assert "unexpected: language_model.model.layers.3.mlp.up_proj.weight (48, 32)" in message
    assert "layers.0.mlp.up_proj.weight should be (48, 32), is (32, 48)" in message


def test_every_fault_of_an_npz_is_named_in_one_error(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(2))
    save_model(model, tmp_path / "npz", layout="npz")
    import numpy as np

    with np.load(tmp_path / "npz" / "model.npz") as file:
        arrays = dict(file)
    del arrays["params/llm/final_norm/scale"]
    arrays["params/img/extra"] = np.zeros(3, np.float32)
    arrays["params/img/head/bias"] = np.zeros(31, np.float32)
    np.savez(tmp_path / "npz" / "model.npz", **arrays)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "npz")
    message = str(caught.value)
    assert "has 3 faults" in message
    assert "missing: llm/final_norm/scale (32,)" in message
    assert "unexpected: img/extra (3,)" in message
    assert "img/head/bias should be (32,), is (31,)" in message


def test_a_reader_that_forgets_a_parameter_cannot_leave_it_random(
    make_config, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    tensors = load_module.HFReader.tensors

    def forgetful(self, config):
        return (item for item in tensors(self, config) if item[0] != "vision.norm.bias")

    monkeypatch.setattr(load_module.HFReader, "tensors", forgetful)
    with pytest.raises(CheckpointError, match=r"never read: vision\.norm\.bias"):
        load_model(tmp_path / "hf")


def test_a_truncated_safetensors_file_is_refused(make_config, make_model, tmp_path: Path) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"must be complete.*fetch it again"):
        load_model(tmp_path / "hf")


def test_safetensors_without_config_are_refused(make_config, make_model, tmp_path: Path) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"need the config\.json"):
        load_model(tmp_path / "hf")


@pytest.mark.parametrize(
    "content", ["{", "[1]", "\x00", "[" * 100_000, '{"a": 1' + " " * (5 << 20)]
)
def test_a_config_that_is_no_bounded_json_object_is_refused(
    make_config, make_model, tmp_path: Path, content: str
) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path / "hf")


def test_weights_in_the_file_s_dtype_are_mapped_not_copied(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(2))
    save_model(model, tmp_path / "hf", dtype="bfloat16")
    mapped = load_model(tmp_path / "hf")
    weight = mapped.text.blocks[1].mlp.up.weight
    path = str(tmp_path / "hf" / "model.safetensors")
    ranges = [
        tuple(int(edge, 16) for edge in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(path)
    ]
    assert any(low <= weight.data_ptr() < high for low, high in ranges)
    # Writing to a mapped weight changes this process's copy only.
    before = Path(path).read_bytes()
    with torch.no_grad():
        weight.zero_()
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("layout", ["hf", "npz"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_what_was_asked_for(
    make_config, make_model, tmp_path: Path, layout: str, dtype: str
) -> None:
    model = make_model(make_config(2))
    save_model(model, tmp_path / "m", layout=layout, dtype="bfloat16")
    loaded = load_model(tmp_path / "m", dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {getattr(torch, dtype)}
    with OpenCheckpoint(tmp_path / "m") as opened:
        assert opened.table_dtype == torch.bfloat16
    assert not loaded.training
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        load_model(tmp_path / "m", dtype="int8")


def test_another_resolution_resizes_the_position_table_only(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    save_model(model, tmp_path / "hf")
    loaded = load_model(tmp_path / "hf", image_size_px=56)
    assert loaded.config == model.config.with_resolution(56)
    table = loaded.vision.pos_embedding
    assert torch.equal(table, resize_position_table(model.vision.pos_embedding, 16))
    assert torch.equal(table[0, 0], model.vision.pos_embedding[0, 0])
    assert torch.equal(loaded.vision.norm.weight, model.vision.norm.weight)
    with pytest.raises(ConfigError, match="multiple of patch_size_px"):
        load_model(tmp_path / "hf", image_size_px=57)


def test_the_embedding_factor_is_rounded_to_the_file_s_dtype(
    make_config, make_model, tmp_path: Path
) -> None:
    # sqrt(32) = 5.65685; bfloat16 rounds it to 5.65625.
    model = make_model(make_config(1))
    model.text.set_embed_scale(torch.bfloat16)
    save_model(model, tmp_path / "hf", dtype="bfloat16")
    assert load_model(tmp_path / "hf").text.embed_scale == 5.65625
    assert load_model(tmp_path / "hf", dtype="float32").text.embed_scale == 5.65625
    theirs = load_model(tmp_path / "hf", dtype="float32", conventions="transformers")
    assert abs(theirs.text.embed_scale - 32**0.5) < 1e-6


@pytest.mark.parametrize(("before", "after"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_converting_the_dtype_keeps_the_embedding_factor(
    make_config, make_model, tmp_path: Path, before: str, after: str
) -> None:
    model = make_model(make_config(1))
    model.text.set_embed_scale(getattr(torch, before))
    scale = model.text.embed_scale
    save_model(model, tmp_path / "a", dtype=before)
    assert "paligemma" not in json.loads((tmp_path / "a/config.json").read_text()) or (
        "embed_scale" not in json.loads((tmp_path / "a/config.json").read_text())["paligemma"]
    )
    convert(tmp_path / "a", tmp_path / "b", layout="npz", dtype=after)
    convert(tmp_path / "b", tmp_path / "c")
    assert load_model(tmp_path / "b").text.embed_scale == scale
    assert load_model(tmp_path / "c").text.embed_scale == scale


def test_the_cache_is_bfloat16_by_the_original_s_convention(
    make_config, make_model, tmp_path: Path
) -> None:
    save_model(make_model(make_config(1)), tmp_path / "hf")
    for conventions, dtype in (("big_vision", torch.bfloat16), ("transformers", torch.float32)):
        with OpenCheckpoint(tmp_path / "hf", conventions=conventions) as opened:
            assert opened.cache_dtype(opened.load()) == dtype
    with pytest.raises(ConfigError, match="big_vision, transformers, got 'keras'"):
        load_model(tmp_path / "hf", conventions="keras")


def test_only_a_plain_model_is_saved(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(1))
    model.text.blocks[0].attn.q.register_parameter("lora_a", nn.Parameter(torch.zeros(2)))
    with pytest.raises(CheckpointError, match=r"text\.blocks\.0\.attn\.q\.lora_a; merge"):
        save_model(model, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_weight_too_large_for_float16_is_refused_and_nothing_is_left(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    with torch.no_grad():
        model.projector.weight[0, 0] = 70_000
    for layout in ("hf", "npz"):
        with pytest.raises(CheckpointError, match=r"projector\.weight reaches 70000; use bf"):
            save_model(model, tmp_path / layout, layout=layout, dtype="float16")
    assert os.listdir(tmp_path) == []


def test_an_interrupted_save_leaves_the_old_checkpoint_whole(
    make_config, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make_config(1))
    save_model(model, tmp_path / "m", layout="npz")
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(NpzWriter, "write", full_disk)
    with pytest.raises(CheckpointError, match=r"writable with room.*No space left"):
        save_model(make_model(make_config(1), 1), tmp_path / "m", layout="npz", overwrite=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
    assert os.listdir(tmp_path) == ["m"]


def test_what_a_folder_holds_is_replaced_only_when_that_is_asked_for(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    pieces = tmp_path / "tokenizer.model"
    pieces.write_bytes(b"new pieces")
    for name in ("config.json", "tokenizer.model", "tokenizer.json", "model.npz.part0"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_bytes(b"old")
        (folder / "[n]otes.txt").write_bytes(b"mine")
        with pytest.raises(CheckpointError, match=rf"holds {name}; .* allow overwriting"):
            save_model(model, folder, extra_files=[pieces])
        assert sorted(os.listdir(folder)) == sorted(["[n]otes.txt", name])
        save_model(model, folder, extra_files=[pieces], overwrite=True)
        assert (folder / "tokenizer.model").read_bytes() == b"new pieces"
        assert sorted(os.listdir(folder)) == [
            "[n]otes.txt",
            "config.json",
            "model.safetensors",
            "tokenizer.model",
        ]


@pytest.mark.parametrize("layout", ["hf", "npz"])
def test_weights_under_another_name_are_never_replaced(
    make_config, make_model, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("mix.npz", "pt.npz.part0", "pt.npz.part1", "vae-oid.npz"):
        (folder / name).write_bytes(b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=r"holds mix\.npz, pt\.npz; .* move them away"):
            save_model(make_model(make_config(1)), folder, layout=layout, overwrite=overwrite)
    assert len(os.listdir(folder)) == 4


def test_a_tokenizer_and_a_codec_that_nothing_replaces_stay(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    save_model(model, tmp_path / "m", layout="npz")
    for name in ("tokenizer.model", "vae-oid.npz"):
        (tmp_path / "m" / name).write_bytes(b"mine")
    save_model(model, tmp_path / "m", overwrite=True)
    assert sorted(os.listdir(tmp_path / "m")) == [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "vae-oid.npz",
    ]


def test_overwriting_is_asked_for_and_removes_files_of_the_old_checkpoint(
    make_config, make_model, tmp_path: Path
) -> None:
    first, second = make_model(make_config(1), 1), make_model(make_config(1), 2)
    save_model(first, tmp_path / "m", max_shard_bytes=30_000)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="choose another folder or allow overwriting"):
        save_model(second, tmp_path / "m")
    save_model(second, tmp_path / "m", overwrite=True)
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors", "notes.txt"]
    loaded = load_model(tmp_path / "m")
    assert torch.equal(loaded.projector.weight, second.projector.weight)


def test_a_mapped_model_can_be_saved_over_its_own_file(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    save_model(model, tmp_path / "m")
    mapped = load_model(tmp_path / "m")
    with torch.no_grad():
        mapped.projector.weight.add_(1)
    save_model(mapped, tmp_path / "m", overwrite=True)
    again = load_model(tmp_path / "m")
    assert torch.equal(again.projector.weight, model.projector.weight + 1)
    assert torch.equal(again.text.embed.weight, mapped.text.embed.weight)


def test_converting_copies_what_belongs_to_the_model(
    make_config, make_model, tmp_path: Path
) -> None:
    save_model(make_model(make_config(1)), tmp_path / "a")
    belongs = [*model_files.TOKENIZERS, *model_files.CODECS, "calibration.json"]
    for name in [*belongs, "optimizer.pt"]:
        (tmp_path / "a" / name).write_bytes(name.encode())
    convert(tmp_path / "a", tmp_path / "b", layout="npz")
    assert sorted(os.listdir(tmp_path / "b")) == sorted([*belongs, "config.json", "model.npz"])
    assert all((tmp_path / "b" / name).read_bytes() == name.encode() for name in belongs)
    (tmp_path / "b" / "tokenizer.json").unlink()
    convert(tmp_path / "b", tmp_path / "b", overwrite=True)
    belongs.remove("tokenizer.json")
    assert sorted(os.listdir(tmp_path / "b")) == sorted(
        [*belongs, "config.json", "model.safetensors"]
    )


def test_converting_keeps_the_caps_and_the_window_that_config_states(
    make_config, make_model, tmp_path: Path
) -> None:
    config = make_config(2, final_softcap=30.0, sliding_window=4096)
    save_model(make_model(config), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", dtype="bfloat16")
    assert load_model(tmp_path / "b", conventions="transformers").config == config
    assert load_model(tmp_path / "b").config.text.final_softcap is None


def test_unknown_options_of_saving_are_refused(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(1))
    for options in (
        {"layout": "onnx"},
        {"spelling": "mine"},
        {"max_shard_bytes": 0},
        {"max_shard_bytes": float("nan")},
        {"spelling": "current", "layout": "npz"},
        {"pad_rows": True, "layout": "npz"},
        {"max_shard_bytes": 10**6, "layout": "npz"},
    ):
        word = "rows" if "pad_rows" in options else next(iter(options)).split("_bytes")[0]
        with pytest.raises(ConfigError, match=word.replace("max_", "")):
            save_model(model, tmp_path / "m", **options)
    assert os.listdir(tmp_path) == []
    assert save_module.MAX_SHARD_BYTES == 5_000_000_000
