"""A hub that fails in every way: each has its sentence, and what was downloaded is still read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import FakeHub, hub_of
from huggingface_hub import constants
from tiny_folder import write_random_tiny

from paligemma import PaliGemma
from paligemma.adapt.lora import AdaptedLinear, Adapter, LoraConfig
from paligemma.cli import main
from paligemma.errors import AccessError, CheckpointError, ModelNotFoundError
from paligemma.weights import hashes
from paligemma.weights.adapter import save_adapter
from paligemma.weights.catalog import resolve
from paligemma.weights.doctor import diagnose
from paligemma.weights.hub import download
from paligemma.weights.load import load_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("hub") / "m")


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with hub_of(model_folder, tmp_path, monkeypatch) as running:
        yield running


FAULTS = {
    "401": (lambda kind, name: 401, "only to those who accepted its licence"),
    "403": (lambda kind, name: 403, "only to those who accepted its licence"),
    "404": (lambda kind, name: 404, "a hub id must exist"),
    "429": (lambda kind, name: 429, r"answered 429 .* wait some minutes"),
    "500": (lambda kind, name: 500, r"answered 500 .* out of order; try again later"),
    "503": (lambda kind, name: 503, r"answered 503 .* out of order"),
    "file 404": (
        lambda kind, name: 404 if name == WEIGHTS else None,
        r"answered 404 .* does not serve what it lists",
    ),
    "login page": (lambda kind, name: b"<html>sign in</html>", "is not the hub .* login page"),
    "list of text": (lambda kind, name: b'{"error": 3}' if kind == "tree" else None, "is not the"),
    "list of numbers": (lambda kind, name: b"[1, 2]" if kind == "tree" else None, "is not the hub"),
    "half a list": (lambda kind, name: b"[{" if kind == "tree" else None, "is not the hub"),
    "no commit": (lambda kind, name: b"{}" if kind == "info" else None, "is not the hub"),
    "no facts": (lambda kind, name: b"x" if kind == "head" else None, "is not the hub"),
    "truncated": (
        lambda kind, name: b"half" if kind == "body" and name == WEIGHTS else None,
        "broke off .* complete files are kept",
    ),
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_each_failure_has_its_sentence_and_spares_a_cached_model(
    hub: FakeHub, monkeypatch, tmp_path: Path, caplog, fault, sentence: str
) -> None:
    hub.fault = fault
    with pytest.raises((AccessError, ModelNotFoundError), match=sentence):
        download("owner/model", None, ask=True)
    hub.fault = lambda kind, name: None
    folder = download("owner/model", None, ask=True)
    hub.fault = fault
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert download("owner/model", None, ask=True) == folder
    assert download("owner/model", None, ask=False) == folder


def test_a_name_that_leaves_the_folder_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.names = ["config.json", "model/../../../../../../evil.safetensors"]
    hub.files["evil.safetensors"] = b"evil"
    with pytest.raises(AccessError, match=r"lists a file .* cannot be kept"):
        download("owner/model", None, ask=True)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("token", ["hf_ü", "hf_токен"])
def test_a_token_of_odd_characters_is_named_and_not_shown(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessError, match=r"HF_TOKEN .* holds other characters") as caught:
        download("owner/model", None, ask=True)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"disk of the hub's cache .* is full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), r"is full; make room, or set HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied", "/c"), r"cache .* must be writable"),
        (OSError(errno.EROFS, "Read-only file system", "/c"), r"Read-only .* set HF_HOME"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "cannot be reached"),
        (RuntimeError("odd\nin two lines"), r"is not the hub \(RuntimeError: odd\)"),
    ],
)
def test_the_machine_s_own_faults_are_told_apart(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def failing(**_: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(AccessError, match=sentence):
        download("owner/model", None, ask=True)


def test_a_cache_that_is_no_folder_is_a_sentence(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(AccessError, match=r"cache .*file must be writable, it is not"):
        download("owner/model", None, ask=True)


def test_bytes_that_are_not_the_hub_s_are_refused_when_loaded(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = download("owner/model", None, ask=True)
    read = []
    real = hashes.sha256
    monkeypatch.setattr(hashes, "sha256", lambda path: read.append(path) or real(path))
    load_model(folder)
    assert len(read) > 2
    read.clear()
    load_model("owner/model")
    assert read == []  # remembered
    blob = (folder / WEIGHTS).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    for name in ("owner/model", folder):
        with pytest.raises(CheckpointError, match=r"has SHA-256 .* instead of .*; delete .*blobs"):
            load_model(name)
    with pytest.raises(SystemExit) as ended:
        main(["convert", "owner/model", str(folder.parent / "out")])
    assert ended.value.code == 2
    assert "must have the bytes that it states" in capsys.readouterr().err
    assert any(f.level == "error" and f.check == "hashes" for f in diagnose(folder))
    os.unlink(blob)
    (folder / WEIGHTS).unlink()
    load_model("owner/model")


def test_without_a_place_for_notes_files_are_read_each_time(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load_model("owner/model")
    load_model("owner/model")


def served(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> AbstractContextManager[FakeHub]:
    monkeypatch.chdir(scratch)
    return hub_of(folder, scratch, monkeypatch)


def test_a_repository_of_big_vision_s_files_is_fetched_with_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_random_tiny(tmp_path / "m", layout="npz")
    (folder / "tokenizer.model").rename(folder / "paligemma_tokenizer.model")
    with served(folder, tmp_path, monkeypatch) as hub:
        found = resolve("owner/model")
        assert (found.layout, len(found.weights)) == ("npz", 1)
        assert "paligemma_tokenizer.model" in str(found.tokenizer)
        hub.fault = lambda kind, name: 500
        assert resolve("owner/model").weights == found.weights


def test_a_repository_s_weights_may_have_another_name(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "m"))
    (folder / WEIGHTS).rename(folder / "merged.safetensors")
    with served(folder, tmp_path, monkeypatch):
        assert [path.name for path in resolve("owner/model").weights] == ["merged.safetensors"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pytorch_model-00001-of-00002.bin", "pickled weights, .* save_pretrained"),
        ("paligemma-q4_k_m.gguf", r"GGUF weights of llama\.cpp"),
        ("model.weights.h5", "weights of Keras"),
        ("README.md", r"owner/model has README\.md"),
    ],
)
def test_a_repository_of_another_program_is_named_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_bytes(b"x")
    with (
        served(tmp_path / "m", tmp_path, monkeypatch),
        pytest.raises(CheckpointError, match=told),
    ):
        resolve("owner/model")
    assert not list(tmp_path.rglob(f"snapshots/*/{name}"))


def test_an_adapter_in_the_place_of_a_model_is_loaded_under_its_base(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load_model(model_folder)
    adapter = Adapter.new(model, LoraConfig(rank=2, alpha=2))
    save_adapter(adapter, model, tmp_path / "a", base=str(model_folder))
    with served(tmp_path / "a", tmp_path, monkeypatch):
        of_hub = PaliGemma.from_pretrained("owner/model")
        here = PaliGemma.from_pretrained(tmp_path / "a")
    for loaded in (of_hub, here):
        assert any(isinstance(part, AdaptedLinear) for part in loaded.model.modules())
    assert f"is an adapter of {model_folder}" in caplog.text
    with pytest.raises(CheckpointError, match="name the model it was trained on"):
        resolve(tmp_path / "a")
    with pytest.raises(CheckpointError, match="name the model it was trained on"):
        PaliGemma.from_pretrained(tmp_path / "a", adapter=tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/their/machine/base"
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="adapter of '/their/machine/base', which cannot be"):
        PaliGemma.from_pretrained(tmp_path / "a")
