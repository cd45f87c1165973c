"""`paligemma export --to aoti`: packages that are compiled, loaded again and asked."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import write_small
from example_answers import require_the_models_answer
from safetensors.torch import load_file
from tiny_folder import VOCAB

from paligemma.export import aoti_folder

Run = Callable[..., tuple[int, str, str]]
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


# Compiling takes a minute on a busy core, so one test looks at everything.
@needs_compiler
def test_packages_share_their_weights_and_answer_as_the_model(
    tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    model = write_small(tmp_path / "model", 2)
    folder = tmp_path / "out"
    status, out, err = program("export", model, folder, "--to", "aoti")
    assert status == 0, err
    told = re.fullmatch(r"float32: logits differ by (\S+) at most\n", out)
    assert told
    checked = json.loads((folder / "check.json").read_text())
    assert [one["situation"] for one in checked] == [
        "a picture, 3 tokens and 3 steps",
        "a picture, 8 tokens and 3 steps",
    ]
    largest = max(one["largest"] for one in checked)
    assert largest <= 1e-4
    assert told[1] == f"{largest:.1e}"

    weights = load_file(folder / "weights.safetensors")
    num_bytes = sum(one.nbytes for one in weights.values())
    assert "text.blocks.1.attn.q.weight" in weights
    for stem in ("prefill", "step"):
        package = folder / f"{stem}.pt2"
        with zipfile.ZipFile(package) as files:
            assert not [one for one in files.namelist() if re.search(r"/weights/|\.pt$|pkl", one)]
            some = weights["text.embed.weight"].numpy().tobytes()[:4096]
            assert all(some not in files.read(one) for one in files.namelist())
    assert num_bytes > 400_000

    require_the_models_answer(folder, model)


def test_without_a_compiler_nothing_is_begun(
    tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aoti_folder, "_COMPILERS", ("no-such-compiler",))
    status, _, err = program("export", "tiny", tmp_path / "out", "--to", "aoti")
    assert status == 2
    assert "needs a compiler, none of no-such-compiler is installed" in err
    assert list(tmp_path.iterdir()) == []


def test_packages_that_differ_leave_no_folder(
    small: Path, tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Another:
        """Packages of another model."""

        def __init__(self, folder: Path) -> None:
            assert (folder / "weights.safetensors").is_file()

        def prefill(self, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple:
            return torch.zeros(1, VOCAB.size), []

        def step(self, tokens: torch.Tensor, past: list) -> tuple:
            return torch.zeros(1, VOCAB.size), past

    monkeypatch.setattr(aoti_folder, "_compile", lambda *_: None)
    monkeypatch.setattr(aoti_folder, "Compiled", Another)
    monkeypatch.setattr(aoti_folder, "_COMPILERS", ("python3", "python"))
    status, out, err = program("export", small, tmp_path / "out", "--to", "aoti")
    assert (status, out) == (1, "")
    assert "float32 logits of an export may differ by 1e-04" in err
    assert list(tmp_path.iterdir()) == []
