"""benchmarks/full_size.py from end to end on a made-up tiny model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from paligemma.processing.tokenizer import load_tokenizer
from paligemma.weights.load import load_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import random_checkpoint

    return random_checkpoint


def write_tiny(checkpoints: ModuleType, workdir: Path) -> Path:
    config = checkpoints.choose_config("tiny", "")
    return checkpoints.write_checkpoint(workdir, "tiny-float32", config, torch.float32)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [] if isinstance(value, str) else [float(value)]


def test_both_engines_answer_alike_and_every_number_is_finite(tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "full_size.py"), "--config", "tiny"),
            *("--dtype", "float32", "--rounds", "1", "--new-tokens", "6", "--threads", "1"),
            *("--workdir", str(tmp_path), "--json", str(report_file)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(report_file.read_text())
    assert all(map(math.isfinite, numbers(report)))
    (first,) = report["rounds"]
    ours, theirs = first["ours"], first["transformers"]
    assert ours["ids"] == theirs["ids"]
    assert len(set(ours["ids"])) > 3
    assert ours["repeats_itself"]
    assert report["summary"]["num_equal_ids"] == [6]
    # 16 soft tokens, BOS, ten characters, separator.
    assert report["num_prompt_tokens"] == 28
    for key, line in report["summary"].items():
        if key != "num_equal_ids":
            assert line["ours"]["median"] > 0
            assert line["times_better"] > 0
    for text in ("| load, s |", "| decoding, tokens/s |", "GB/s", f"torch {torch.__version__}"):
        assert text in done.stdout
    assert "--config tiny --dtype float32" in done.stdout.splitlines()[-1]


def test_the_folder_holds_what_a_published_one_does(
    checkpoints: ModuleType, tmp_path: Path
) -> None:
    folder = write_tiny(checkpoints, tmp_path)
    loaded = load_model(folder)
    assert loaded.config == checkpoints.choose_config("tiny", "")
    tokenizer = load_tokenizer(folder)
    tokenizer.check(loaded.config.vocab)
    assert tokenizer.decode(tokenizer.encode("a  b<loc0003>\n")) == "a  b<loc0003>\n"
    deviations = [parameter.std().item() for parameter in loaded.parameters() if parameter.ndim > 1]
    assert min(deviations) > 0
    first, second = (block.mlp.up.weight for block in list(loaded.text.blocks)[:2])
    assert not torch.equal(first, second)


def test_a_complete_folder_is_used_again_and_a_partial_one_is_not(
    checkpoints: ModuleType, tmp_path: Path
) -> None:
    partial = tmp_path / ".tiny-float32.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"cut")
    folder = write_tiny(checkpoints, tmp_path)
    assert not partial.exists()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert write_tiny(checkpoints, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_vocabulary_of_a_release_has_its_ids(checkpoints: ModuleType, tmp_path: Path) -> None:
    config = checkpoints.choose_config("release", "google/paligemma-3b-pt-224")
    assert checkpoints.count_parameters(config) == 2_923_335_408
    (tmp_path / "tokenizer.model").write_bytes(checkpoints.tokenizer_model(config.vocab.loc0))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab == config.vocab
    assert tokenizer.encode("caption en\n")[-1] == 108
    assert len(tokenizer.encode("caption en")) == 10


def test_a_disk_without_room_is_refused_before_anything_is_written(
    checkpoints: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoints.choose_config("release", "google/paligemma2-28b-pt-224")
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SystemExit, match=r"58\.1 GB of disk.*1\.0 GB; choose another --workdir"):
        checkpoints.write_checkpoint(tmp_path, "large", config, torch.bfloat16)
    assert list(tmp_path.iterdir()) == []
