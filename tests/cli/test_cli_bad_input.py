"""What bad input gets: one sentence, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import DESK

from paligemma.processing.sentencepiece_model import train_tokenizer

Run = Callable[..., Any]
Break = Callable[[dict[str, torch.Tensor]], None]


def require_refused(done: Any, *said: str) -> None:
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith("paligemma: ")
    assert "Traceback" not in done.err
    for words in said:
        assert words in done.err


def png_of_size(width: int, height: int) -> bytes:
    """A valid header, and almost no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DESK.read_bytes()[:5000], "complete and undamaged"),
        (b"GIF89a" + b"\xff" * 500, "64000000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be recognised"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be recognised"),
        (b"", "cannot be recognised"),
        (png_of_size(10_000, 10_000), "64000000 pixels"),
        (png_of_size(40_000, 40_000), "64000000 pixels"),
    ],
    ids=["truncated", "hostile", "postscript", "svg", "empty", "bomb", "larger-bomb"],
)
def test_a_picture_that_cannot_be_read_is_refused(
    paligemma: Run, tmp_path: Path, data: bytes, said: str
) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    done = paligemma("caption", path, "-o", tmp_path / "out.png", "--json")
    require_refused(done, said, "bad.png")
    assert len(done.err.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.png"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("x" * 100_000, "10000 characters, got 100000"),
        ("detect \x00", "control character U+0000"),
    ],
)
def test_a_bad_prompt_is_refused_before_the_model_is_loaded(
    paligemma: Run, prompt: str, said: str
) -> None:
    for command in ("run", "generate"):
        done = paligemma(command, DESK, prompt, "--model", "no/such-model")
        require_refused(done, said)
        assert len(done.err) < 300


@pytest.mark.parametrize(
    "args",
    [
        ("answer", DESK, ""),
        ("detect", DESK, " ; "),
        ("segment", DESK, ""),
        ("caption", DESK, "--lang", "english please"),
        ("read", "missing.png"),
        ("read", "https://example.com/a.png"),
        ("read", DESK, "--image-size", "100"),
        ("read", DESK, "--device", "toaster"),
        ("read", DESK, "--top-k", "3", "--top-p", "0.5"),
        ("read", DESK, "--max-new-tokens", "0"),
        ("read", DESK, "-o", "answer.jpg"),
        ("read", DESK, "-o", "no-such-folder/answer.png"),
        ("read", DESK, DESK, "-o", "answer.png"),
        ("read", DESK, DESK, "-o", "."),
        ("read", DESK, "--mask-codec", "missing.npz"),
        ("inspect", "missing.png", "ocr"),
        ("inspect", DESK, ""),
        ("inspect", DESK, "ocr", "-o", DESK),
        ("demo", "missing.png"),
        ("demo", "--output-dir", DESK),
        ("doctor", "no-such-model"),
        ("convert", "no-such-model", "out"),
    ],
    ids=lambda args: " ".join(str(arg).replace(str(DESK), "desk") for arg in args),
)
def test_every_command_refuses_bad_input_alike(
    paligemma: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = paligemma(*args)
    require_refused(done)
    assert len(done.err.splitlines()) == 1
    assert [entry for entry in tmp_path.iterdir() if entry.name != "demo"] == []


@pytest.mark.parametrize(
    "name",
    ["tinny", "google/paligemma-9b-pt-224@float32", "./missing", "missing.npz", "a/b/c", "", "?"],
)
def test_an_unknown_model_is_refused(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    require_refused(paligemma("caption", DESK, "--model", name))


def broken_copy(tiny_dir: Path, folder: Path, spoil: Break) -> Path:
    shutil.copytree(tiny_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_with_missing_extra_and_misshaped_keys_is_refused_in_one_error(
    paligemma: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        names = sorted(tensors)
        del tensors[names[0]]
        tensors["surplus"] = torch.zeros(2)
        tensors[names[1]] = torch.zeros(3, 3)

    folder = broken_copy(tiny_dir, tmp_path / "model", spoil)
    done = paligemma("caption", DESK, "--model", folder)
    require_refused(done, "3 faults", "missing: ", "unexpected: surplus", "shape: ")


def test_an_npz_that_holds_objects_is_refused(paligemma: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, **{"params/img/pos_embedding": np.array([{"a": 1}], dtype=object)})
    require_refused(paligemma("caption", DESK, "--model", path), "model.npz")


def test_damaged_model_files_are_refused(paligemma: Run, tiny_dir: Path, tmp_path: Path) -> None:
    for name, size in (("model.safetensors", 3000), ("config.json", 50), ("tokenizer.model", 99)):
        folder = shutil.copytree(tiny_dir, tmp_path / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
        require_refused(paligemma("caption", DESK, "--model", folder), name)


def test_a_config_for_another_model_is_refused(
    paligemma: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    require_refused(paligemma("caption", DESK, "--model", folder), "shape: ")


def test_a_tokenizer_with_other_ids_is_refused_by_name(paligemma: Run, tmp_path: Path) -> None:
    other = train_tokenizer(["a small text"] * 9, vocab_size=290, out_path=tmp_path / "other.model")
    require_refused(paligemma("caption", DESK, "--tokenizer", other), "must give", "the id")


def test_a_conversion_leaves_nothing_half_written(
    paligemma: Run, tiny_dir: Path, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[max(tensors)]

    folder = broken_copy(tiny_dir, tmp_path / "model", spoil)
    require_refused(paligemma("convert", folder, tmp_path / "out", "--layout", "npz"), "missing: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_program_itself_exits_with_2_and_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from paligemma.cli import main; main()", "detect", "a.png", " "],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith("paligemma: the label must hold some text")


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (("detect", "a.png", "b.png", "star", "-o", "."), "a.png"),
        (("detect", "a.png", "star", "-o", "a.png"), "a.png"),
        (("caption", "a.png", "-o", "."), "a.png"),
        (("caption", "a.png", "-o", "link/a.png"), "link/a.png"),
        (("caption", "c.jpg", "a.png", "-o", "link"), "link/a.png"),
        (("generate", "b.png", "a.png", "ocr", "--frames", "-o", "a.png"), "a.png"),
        (("inspect", "attention.png", "ocr", "-o", "."), "attention.png"),
        (("demo", "detect.png", "--output-dir", "."), "detect.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_no_picture_asked_about_is_replaced(
    paligemma: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    written: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c.jpg", "attention.png", "detect.png"):
        shutil.copy(DESK, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path)
    done = paligemma(*words, "--model", "no/such-model")
    require_refused(done, "pictures asked about are kept", f"'{written}' is one of them")
    assert {path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == {
        DESK.read_bytes()
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("read", "no.png", "none.png"), "there is no file no.png and no none.png"),
        (("generate", "no.png", "ocr"), "there is no file no.png"),
        (("inspect", "no.png", "ocr"), "there is no file no.png"),
        (("demo", "no.png", "--output-dir", "made"), "there is no file no.png"),
        (("read", "https://example.com/a.png"), "add --allow-url"),
    ],
)
def test_a_missing_picture_is_named_before_the_model_is_loaded(
    paligemma: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    require_refused(paligemma(*words, "--model", "no/such-model"), said)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_leaves_no_folder_of_a_picture_it_cannot_read(
    paligemma: Run, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(DESK.read_bytes()[:5000])
    require_refused(paligemma("demo", broken, "--output-dir", tmp_path / "made"), "undamaged")
    assert not (tmp_path / "made").exists()


def test_one_bad_picture_leaves_the_others_their_answers(paligemma: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(DESK.read_bytes()[:5000])
    words = ("read", DESK, broken, DESK, "--max-new-tokens", "3")
    done = paligemma(*words, "--json")
    assert done.status == 2
    first, second, third = done.json["results"]
    assert first == third
    assert "text" in first
    assert set(second) == {"image", "prompt", "error"}
    assert second["image"] == str(broken)
    assert "complete and undamaged" in second["error"]
    done = paligemma(*words)
    assert done.status == 2
    assert [line.split(": ")[0] for line in done.out.splitlines()] == [str(DESK), str(DESK)]
    assert f"paligemma: {second['error']}\n" in done.err


def test_an_overlay_that_cannot_be_written_leaves_the_answer(
    paligemma: Run, tmp_path: Path
) -> None:
    grey = tmp_path / "grey.png"
    shutil.copy(DESK, grey)
    folder = tmp_path / "drawn"
    (folder / "grey.png").mkdir(parents=True)
    done = paligemma("read", grey, DESK, "--max-new-tokens", "3", "-o", folder, "--json")
    assert done.status == 2
    first, second = done.json["results"]
    assert first["text"] == second["text"]
    assert "grey.png" in first["error"]
    assert "error" not in second
    assert (folder / "desk.png").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--temperature", "-1"), "the temperature must lie in [1e-06, 100]"),
        (("--top-k", "0"), "top-k must keep at least 1 token"),
        (("--best-of", "3"), "state a temperature, --top-k or --top-p"),
        (("--length-penalty", "1"), "raise --beams"),
    ],
)
def test_errors_of_options_speak_of_options(
    paligemma: Run, options: tuple[str, ...], said: str
) -> None:
    done = paligemma("read", DESK, *options)
    require_refused(done, said)
    for word in ("Greedy()", "top_k", "num_beams", "best_of"):
        assert word not in done.err


def test_too_large_a_picture_names_no_option_that_is_not_there(
    paligemma: Run, tmp_path: Path
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_of_size(10_000, 10_000))
    require_refused(paligemma("read", path), "shrink it first (in Python, max_pixels")
