"""The same weights in folders of other programs and habits: read right, or refused by name."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.errors import CheckpointError, TokenizerError
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.weights.catalog import embedded_folder, resolve
from paligemma.weights.doctor import diagnose, worst
from paligemma.weights.load import load_model
from paligemma.weights.save import save_model

EMBED = "language_model.model.embed_tokens.weight"
PATCH = "vision_tower.vision_model.embeddings.patch_embedding.weight"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def model(make_config, make_model) -> PaliGemmaModel:
    return make_model(make_config(2))


@pytest.fixture
def folder(model: PaliGemmaModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "hf")
    return tmp_path / "hf"


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = {key: value.contiguous() for key, value in change(tensors).items()}
    save_file(changed, folder / "model.safetensors")


def assert_same_weights(folder: Path, model: PaliGemmaModel) -> None:
    loaded = dict(load_model(folder).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded[name], parameter), name


def current(key: str) -> str:
    return "model." + key.replace("language_model.model.", "language_model.")


@pytest.mark.parametrize("spelling", ["published", "current"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "policy.paligemma.", "model.model."]
)
def test_a_prefix_that_wraps_every_name_is_found_and_said(
    folder: Path, model: PaliGemmaModel, caplog, prefix: str, spelling: str
) -> None:
    spell = current if spelling == "current" else str
    rewrite(folder, lambda tensors: {prefix + spell(k): v for k, v in tensors.items()})
    assert_same_weights(folder, model)
    assert f"under the prefix '{prefix.split('.')[0]}." in caplog.text


def test_a_model_inside_another_says_what_is_not_read(
    folder: Path, model: PaliGemmaModel, caplog
) -> None:
    def inside(tensors: Tensors) -> Tensors:
        return {"vlm." + k: v for k, v in tensors.items()} | {"action.weight": torch.zeros(2)}

    rewrite(folder, inside)
    assert_same_weights(folder, model)
    assert "1 others are not read: action.weight" in caplog.text


def test_wrappers_inside_the_names_are_left_out(folder: Path, model: PaliGemmaModel) -> None:
    def wrapped(key: str) -> str:
        key = key.replace("vision_tower.", "vision_tower._orig_mod.")
        return key.replace(
            ".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."
        )

    rewrite(folder, lambda tensors: {wrapped(k): v for k, v in tensors.items()})
    assert_same_weights(folder, model)


def test_an_adapter_that_was_not_merged_is_named(folder: Path) -> None:
    update = "base_model.model." + EMBED.replace("embed_tokens", "layers.0.mlp.up_proj.lora_A")
    rewrite(folder, lambda tensors: tensors | {update: torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"merge them with PEFT's merge_and_unload"):
        load_model(folder)


def test_a_wrong_model_is_refused_in_ten_lines(folder: Path) -> None:
    rewrite(folder, lambda _: {f"h.{i}.{'w' * 2000}": torch.zeros(1) for i in range(300)})
    with pytest.raises(CheckpointError, match=r"\n  and \d+ more$") as caught:
        load_model(folder)
    assert len(str(caught.value).splitlines()) == 12
    assert len(str(caught.value)) < 4000
    assert worst(diagnose(folder, hash_files=False)) == "error"


@pytest.mark.parametrize("key", ["lm_head.weight", "language_model.lm_head.weight"])
def test_a_tied_table_under_the_name_of_the_head_is_read(
    folder: Path, model: PaliGemmaModel, caplog, key: str
) -> None:
    rewrite(folder, lambda tensors: {key: tensors.pop(EMBED), **tensors})
    assert_same_weights(folder, model)
    assert f"the embedding table as {key}" in caplog.text


def test_a_patch_kernel_with_its_channels_last_is_turned(
    folder: Path, model: PaliGemmaModel, caplog
) -> None:
    rewrite(folder, lambda tensors: tensors | {PATCH: tensors[PATCH].permute(0, 2, 3, 1)})
    assert_same_weights(folder, model)
    assert "MLX" in caplog.text


def test_float64_is_narrowed_and_said(folder: Path, model: PaliGemmaModel, caplog) -> None:
    rewrite(folder, lambda tensors: {key: value.double() for key, value in tensors.items()})
    assert_same_weights(folder, model)
    assert "float64, which is narrowed to float32" in caplog.text
    rewrite(folder, lambda tensors: tensors | {EMBED: tensors[EMBED] + 1e300})
    with pytest.raises(CheckpointError, match=r"float32 holds numbers up to 3\.40282e\+38"):
        load_model(folder)


def split(folder: Path, names: list[str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(tensors)
    for number, name in enumerate(names):
        save_file({key: tensors[key] for key in keys[number :: len(names)]}, folder / name)


@pytest.mark.parametrize(
    "names",
    [
        [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)],
        ["model.fp32.safetensors"],
        ["tower.safetensors", "decoder.safetensors"],
    ],
)
def test_files_without_an_index_are_read_together(
    folder: Path, model: PaliGemmaModel, caplog, names: list[str]
) -> None:
    split(folder, names)
    assert_same_weights(folder, model)
    assert "has no index" in caplog.text
    assert names[-1] in caplog.text


def test_a_series_without_index_must_be_complete(folder: Path) -> None:
    split(folder, [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)])
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"misses model-00002-of-00003\.safetensors; finish"):
        load_model(folder)


def test_two_variants_side_by_side_are_no_model(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "a.safetensors")
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    with pytest.raises(CheckpointError, match="each tensor must appear once"):
        load_model(folder)


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_complete_file_is_read_whatever_the_index_beside_it_lists(
    folder: Path, model: PaliGemmaModel, caplog, index: str
) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert_same_weights(folder, model)
    assert "the index beside it is not" in caplog.text


def test_a_file_of_the_model_may_be_named(folder: Path, model: PaliGemmaModel) -> None:
    assert_same_weights(folder / "model.safetensors", model)
    split(folder, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    assert_same_weights(folder / "model-00002-of-00002.safetensors", model)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pytorch_model-00001-of-00002.bin", "pickled weights"),
        ("last.ckpt", "pickled weights"),
        ("paligemma-q4.gguf", r"GGUF weights of llama\.cpp"),
        ("model.weights.h5", "weights of Keras"),
        ("onnx/decoder.onnx", "an ONNX export"),
        ("_CHECKPOINT_METADATA", "an Orbax checkpoint"),
        ("default/manifest.ocdbt", "an Orbax checkpoint"),
        ("paligemma-sfp.sbs", r"weights of gemma\.cpp"),
        ("flax_model.msgpack", "weights of Flax"),
        ("paligemma.task", "a LiteRT export"),
        ("openvino_language_model.bin", "an OpenVINO export"),
        ("saved_model.pb", "a model of TensorFlow"),
        ("model.bin", "pickled weights"),
    ],
)
def test_a_folder_of_another_program_is_named_with_its_remedy(
    tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=kind + ".*(take the published|save_pretrained)"):
        resolve(tmp_path)
    if "/" not in name:
        with pytest.raises(CheckpointError, match=kind):
            resolve(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["zero_to_fp32.py", "global_step9/mp_rank_00_model_states.pt"], "--safe_serialization"),
        (["paligemma.tar.gz"], "unpack it"),
        (["model.safetensors.crdownload", "config.json"], "download was not finished"),
        (["config.json", "optimizer.pt", "training_args.bin"], "none of them but config.json, opt"),
    ],
)
def test_what_a_folder_holds_instead_is_told_with_the_way_out(
    tmp_path: Path, names: list[str], remedy: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=remedy):
        resolve(tmp_path)


def test_links_to_files_that_were_left_behind_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(CheckpointError, match=r"not there, model\.safetensors; .*cp -rL"):
        resolve(tmp_path)


def test_the_only_model_inside_a_folder_is_read(folder: Path, tmp_path: Path, caplog) -> None:
    inside = tmp_path / "run" / "checkpoint-500"
    inside.parent.mkdir()
    folder.rename(inside)
    assert resolve(inside.parent).folder == inside
    assert "checkpoint-500 is read" in caplog.text


def test_of_many_checkpoints_the_last_is_proposed(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (500, 1000, 90):
        shutil.copytree(folder, run / f"checkpoint-{step}")
    with pytest.raises(CheckpointError, match=r"several .* such as \S+/checkpoint-1000$"):
        resolve(run)


def test_a_folder_of_the_hub_s_cache_stands_for_its_main_snapshot(
    folder: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "models--owner--name"
    for commit in ("abc", "def"):
        shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert resolve(cached).folder.name == "abc"


def test_an_index_none_of_whose_files_is_left_gives_way_to_those_that_are(
    folder: Path, model: PaliGemmaModel, caplog
) -> None:
    (folder / "model.safetensors").rename(folder / "merged.safetensors")
    stale = {"weight_map": {EMBED: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert_same_weights(folder, model)
    assert "merged.safetensors" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "x.npz"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
        (b"", "it is empty"),
    ],
)
def test_what_was_never_fetched_is_recognised(
    folder: Path, name: str, content: bytes, told: str
) -> None:
    shutil.copy(embedded_folder() / "tokenizer.model", folder)
    if name.endswith(".npz"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises((CheckpointError, TokenizerError), match=told):
        load_processor(folder, LoadOptions())


@pytest.mark.parametrize("kind", ["prefix", "dtype", "unexpected", "member", "array"])
def test_no_message_repeats_a_name_without_end(folder: Path, caplog, kind: str) -> None:
    name = "k" * 60_000
    if kind in ("member", "array"):
        (folder / "model.safetensors").unlink()
        data = io.BytesIO(b"x")
        if kind == "array":
            np.save(data, np.zeros(3, np.complex64))
        with zipfile.ZipFile(folder / "x.npz", "w") as archive:
            archive.writestr(name + ".npy", data.getvalue())
    else:
        extra = torch.zeros(2, dtype=torch.int8 if kind == "dtype" else torch.float32)
        rewrite(
            folder,
            lambda tensors: (
                {f"{name}.{k}": v for k, v in tensors.items()}
                if kind == "prefix"
                else tensors | {name: extra}
            ),
        )
    messages = [finding.message for finding in diagnose(folder)]
    if kind == "prefix":
        load_model(folder)
    else:
        with pytest.raises(CheckpointError) as caught:
            load_model(folder)
        messages.append(str(caught.value))
    messages += [record.getMessage() for record in caplog.records]
    assert max(map(len, messages)) < 1000
