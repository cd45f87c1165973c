"""Files without rights, bombs and hostile JSON: a sentence at once, never a traceback."""

from __future__ import annotations

import builtins
import io
import json
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_folder import write_random_tiny

from paligemma.cli import main
from paligemma.errors import CheckpointError, PaliGemmaError
from paligemma.weights.catalog import resolve
from paligemma.weights.doctor import diagnose, worst
from paligemma.weights.load import load_model
from paligemma.weights.npz import NpzReader
from paligemma.weights.save import convert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("unreadable") / "m")


def forbid(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Opening the file fails as it does without rights; root may read all, so it is pretended."""
    real = io.open

    def opened(name: Any, *args: Any, **kwargs: Any) -> Any:
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.model", "mask_codec.safetensors"]
)
def test_a_file_without_rights_is_a_finding_and_a_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    forbid(monkeypatch, folder / name)
    findings = diagnose(folder, read_weights=False)
    hashed = [f for f in findings if f.check == "hashes"]
    assert len(hashed) == 4  # the others are hashed all the same
    assert [f.message for f in hashed if f.level == "error"] == [
        f"{folder / name} cannot be read (Permission denied); change its rights or copy it"
    ]
    with pytest.raises(CheckpointError, match=rf"{name}.* is not.*\(Permission denied\)"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(main, ["doctor", str(folder), "--quick"])
    if name != "model.safetensors":
        assert "Traceback" not in result.output


def test_a_folder_without_rights_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(CheckpointError, match=r"folder must be readable, .* \(Permission denied\)"):
        resolve(folder)
    assert worst(diagnose(folder)) == "error"


def test_many_members_that_unfold_are_a_bomb_together(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(12):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros((6, 1 << 18), np.float32))
            archive.writestr(f"params/{number}.npy", buffer.getvalue())
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="do not shrink more than 20-fold"):
        NpzReader([path])
    assert time.process_time() - begun < 1
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
    assert worst(diagnose(path)) == "error"


def test_a_small_file_of_zeros_is_no_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "m.npz", **{"params/a": np.zeros((1 << 20,), np.float32)})
    with NpzReader([tmp_path / "m.npz"]) as reader:
        assert reader.read("params/a").abs().sum() == 0


HOSTILE = {
    "deep": "[" * 200_000,
    "deep objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "number": '{"vocab_size": 1e400}',
    "digits": '{"vocab_size": ' + "9" * 6_000 + "}",
    "nan": '{"vocab_size": NaN}',
    "large": "[" + "[]," * (2 << 20) + "[]]",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_hostile_json_is_refused_within_a_second(
    folder: Path, tmp_path: Path, name: str, content: str
) -> None:
    for file in ("config.json", "tokenizer.model"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    weights = "part.safetensors" if "index" in name else "model.safetensors"
    (tmp_path / weights).write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / name).write_text(content)
    begun = time.process_time()
    with pytest.raises(PaliGemmaError, match=name) as caught:
        load_model(tmp_path)
    assert time.process_time() - begun < 1
    assert len(str(caught.value)) < 600
    assert worst(diagnose(tmp_path, hash_files=False)) == "error"


@pytest.mark.parametrize("content", [HOSTILE["deep"], HOSTILE["number"], json.dumps({"a": "b"})])
def test_hostile_json_beside_the_tokenizer_is_left_aside(
    folder: Path, tmp_path: Path, caplog, content: str
) -> None:
    for file in ("config.json", "tokenizer.model", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_text(content)
    load_model(tmp_path)
    assert "added_tokens.json is left aside" in caplog.text
