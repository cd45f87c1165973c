"""The same weights in folders of other programs and habits: read right, or refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.errors import CheckpointError
from paligemma.model import PaliGemmaModel
from paligemma.weights.catalog import resolve
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
