"""A hub that fails in every way: each has its sentence, and what was downloaded is still read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import FakeHub, hub_of
from huggingface_hub import constants
from tiny_folder import write_random_tiny

from paligemma.cli import main
from paligemma.errors import AccessError, CheckpointError, ModelNotFoundError
from paligemma.weights import hashes
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
