"""The doctor names what is wrong with a checkpoint, and finds nothing wrong with a good one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.errors import ModelNotFoundError
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.weights.doctor import Finding, diagnose, worst
from paligemma.weights.save import save_model
from paligemma.weights.statistics import measure, suspicious

TOKENIZER = Path(str(resources.files("paligemma"))) / "models" / "tiny" / "tokenizer.model"
TEXT = "language_model.model."


@pytest.fixture
def folder(make_config, make_model, tmp_path: Path) -> Path:
    """A sound checkpoint of five decoder layers, with tokenizer."""
    config = replace(make_config(2, depth=5), vocab=load_tokenizer(TOKENIZER).vocab)
    save_model(make_model(config), tmp_path / "m", dtype="bfloat16", extra_files=[TOKENIZER])
    return tmp_path / "m"


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def errors(findings: list[Finding], level: str = "error") -> list[tuple[str, str]]:
    return [(f.check, f.message) for f in findings if f.level == level]


def test_a_sound_checkpoint_passes_every_check(folder: Path) -> None:
    findings = diagnose(folder)
    assert worst(findings) == "ok", findings
    assert {f.check for f in findings} == {
        "kernels",
        "files",
        "hashes",
        "config",
        "shapes",
        "dtype",
        "statistics",
        "tokenizer",
        "embeddings",
        "forward",
    }


def test_a_sound_npz_passes_too(make_config, make_model, tmp_path: Path) -> None:
    save_model(make_model(make_config(1)), tmp_path / "m", layout="npz")
    # Nothing is wrong with it, but it cannot be asked anything without a tokenizer.
    ((check, message),) = errors(diagnose(tmp_path / "m"))
    assert check == "tokenizer"
    assert "put the published one beside the weights" in message


@pytest.mark.parametrize("broken", [b"", b"not a codec", None], ids=["empty", "foreign", "short"])
def test_a_mask_codec_is_opened(folder: Path, broken: bytes | None) -> None:
    path = folder / "mask_codec.safetensors"
    narrow = MaskCodecConfig(channels=(4, 4, 4), hidden=8, code_dim=8, num_codes=16)
    MaskCodec(narrow).save(path, dtype="float16")
    findings = diagnose(folder, hash_files=False, read_weights=False)
    assert errors(findings) == []
    assert any(f.check == "codec" and "masks of 16 codewords" in f.message for f in findings)
    path.write_bytes(path.read_bytes()[:-9] if broken is None else broken)
    findings = diagnose(folder, hash_files=False, read_weights=False)
    ((check, message),) = errors(findings)
    assert check == "codec"
    assert "mask_codec.safetensors" in message
    assert {f.check for f in findings} >= {"shapes", "tokenizer"}


def test_a_file_without_tensors_is_a_finding(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")
    findings = errors(diagnose(folder, hash_files=False))
    assert {check for check, _ in findings} == {"shapes"}
    assert findings[0][1].startswith("missing: ")


def test_reading_headers_only_skips_values_and_forward(folder: Path) -> None:
    checks = {f.check for f in diagnose(folder, hash_files=False, read_weights=False)}
    assert checks == {"files", "kernels", "config", "shapes", "dtype", "tokenizer"}


def test_a_name_without_a_model_is_an_error_not_a_finding() -> None:
    with pytest.raises(ModelNotFoundError):
        diagnose("no-such-model")


def test_an_empty_folder_is_a_finding(tmp_path: Path) -> None:
    assert [check for check, _ in errors(diagnose(tmp_path))] == ["files"]


def test_a_truncated_file_is_a_finding(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    ((check, message),) = errors(diagnose(folder))
    assert check == "files"
    assert "must be complete" in message


def test_a_file_that_differs_from_its_stated_hash_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
    findings = diagnose(folder, read_weights=False)
    assert any(f"{digest}, as SHA256SUMS states" in f.message for f in findings)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    ((check, message),) = errors(diagnose(folder, read_weights=False))
    assert check == "hashes"
    assert f"SHA256SUMS states {digest}" in message


def test_hashes_that_the_hub_left_are_used(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    wrong = "0" * 64
    metadata = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"commit\n{wrong}\n1.0\n")
    assert [check for check, _ in errors(diagnose(folder, read_weights=False))] == ["hashes"]
    metadata.unlink()
    # The hub's cache: a link to a file named after its hash.
    blob = tmp_path / hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(blob)
    path.symlink_to(blob)
    findings = diagnose(folder, read_weights=False)
    assert errors(findings) == []
    assert any("as the hub states" in f.message for f in findings)


def test_missing_and_misshaped_tensors_are_all_named(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[TEXT + "norm.weight"]
        tensors["multi_modal_projector.linear.bias"] = torch.zeros(3)

    edit(folder, change)
    found = errors(diagnose(folder))
    assert [check for check, _ in found] == ["shapes", "shapes"]
    assert "missing: language_model.model.norm.weight" in found[0][1]
    assert "linear.bias should be (32,), is (3,)" in found[1][1]


def test_a_position_table_of_another_resolution_is_explained(folder: Path) -> None:
    edit_config(folder, lambda raw: raw["vision_config"].update(image_size=56))
    ((check, message),) = errors(diagnose(folder))
    assert check == "shapes"
    assert "another resolution than the 56 px" in message


def test_a_decoder_that_differs_from_the_release_of_its_size_is_found(folder: Path) -> None:
    edit_config(
        folder,
        lambda raw: raw["text_config"].update(
            hidden_size=4608,
            num_hidden_layers=46,
            intermediate_size=36864,
            num_attention_heads=32,
            num_key_value_heads=16,
            head_dim=128,
            query_pre_attn_scalar=128,
        ),
    )
    found = dict(errors(diagnose(folder)))
    assert "size of gemma2_27b but query_scale 0.088" in found["config"]
    assert "instead of 0.0833" in found["config"]


def test_a_folder_named_after_another_release_is_found(folder: Path) -> None:
    named = folder.with_name("paligemma2-3b-mix-448")
    folder.rename(named)
    ((check, message),) = errors(diagnose(named))
    assert check == "config"
    assert "gemma2_2b at 448 px, this is another at 28 px" in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (TEXT + "layers.1.mlp.up_proj.weight", float("nan"), "holds 1 NaN and 0 infinite of 1536"),
        (TEXT + "embed_tokens.weight", float("inf"), "holds 0 NaN and 1 infinite"),
    ],
)
def test_values_that_are_not_finite_are_found(
    folder: Path, key: str, value: float, message: str
) -> None:
    edit(folder, lambda tensors: tensors[key].view(-1)[7].fill_(value))
    ((check, found),) = errors(diagnose(folder))
    assert check == "statistics"
    assert message in found


def test_a_kernel_of_zeros_is_found(folder: Path) -> None:
    edit(folder, lambda tensors: tensors["multi_modal_projector.linear.weight"].zero_())
    ((check, message),) = errors(diagnose(folder))
    assert check == "statistics"
    assert message.startswith("projector.weight is all zero")


def test_a_layer_far_from_the_others_is_pointed_out(folder: Path) -> None:
    edit(folder, lambda tensors: tensors[TEXT + "layers.2.mlp.up_proj.weight"].mul_(100))
    findings = diagnose(folder)
    assert worst(findings) == "warning"
    ((check, message),) = errors(findings, "warning")
    assert check == "statistics"
    assert message.startswith("text.blocks.2.mlp.up.weight has standard deviation")


def test_a_tokenizer_with_other_ids_is_found(folder: Path) -> None:
    edit_config(folder, lambda raw: raw["paligemma"].update(sep=raw["paligemma"]["sep"] + 1))
    ((check, message),) = errors(diagnose(folder))
    assert check == "tokenizer"
    assert "must give sep the id" in message


def test_location_tokens_that_share_an_embedding_are_found(folder: Path) -> None:
    vocab = load_tokenizer(TOKENIZER).vocab

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[TEXT + "embed_tokens.weight"][vocab.loc0 : vocab.loc0 + 1024] = 0.5

    edit(folder, change)
    ((check, message),) = errors(diagnose(folder))
    assert check == "embeddings"
    assert "1024 location tokens share an embedding" in message


def test_a_tower_that_does_not_reach_the_decoder_is_found(folder: Path) -> None:
    # Tiny, not zero: only the forward pass can tell.
    edit(folder, lambda tensors: tensors["multi_modal_projector.linear.weight"].mul_(1e-30))
    found = errors(diagnose(folder))
    assert [check for check, _ in found] == ["forward"]
    assert "picture does not change the logits" in found[0][1]


def test_logits_that_overflow_are_found(folder: Path) -> None:
    edit(folder, lambda tensors: tensors[TEXT + "norm.weight"].fill_(3e38))
    found = errors(diagnose(folder))
    assert [check for check, _ in found] == ["forward"]
    assert "NaN or infinite logits" in found[0][1]


def test_a_broken_tokenizer_file_does_not_stop_the_other_checks(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"not a model")
    findings = diagnose(folder)
    assert [check for check, _ in errors(findings)] == ["tokenizer"]
    assert findings[-1].check == "forward"


def test_a_broken_config_is_a_finding(folder: Path) -> None:
    shutil.copy(TOKENIZER, folder / "config.json")
    assert [check for check, _ in errors(diagnose(folder))] == ["config"]


def test_statistics_are_those_of_the_finite_values() -> None:
    values = torch.tensor([1.0, 3.0, float("nan"), float("inf"), -float("inf"), -5.0])
    measured = measure(values.bfloat16())
    assert (measured.num_nan, measured.num_inf, measured.num_values) == (1, 2, 6)
    assert measured.largest == 5.0
    assert measured.mean == pytest.approx(-1 / 3)
    assert measured.std == pytest.approx(values[[0, 1, 5]].std(correction=0).item())


def test_few_layers_are_not_compared() -> None:
    layers = {f"text.blocks.{i}.mlp.up.weight": measure(torch.randn(9) * 100**i) for i in range(3)}
    assert suspicious(layers) == []
