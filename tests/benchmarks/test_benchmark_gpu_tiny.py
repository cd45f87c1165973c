"""The run of the embedded model comes home in small files, and is the same run again."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script():
    spec = importlib.util.spec_from_file_location("gpu_tiny", ROOT / "benchmarks" / "gpu_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_newest_checkpoint_of_each_stage_comes_home_in_files_below_sixteen_megabytes(
    tmp_path: Path,
) -> None:
    gpu_tiny = script()
    run, home = tmp_path / "run", tmp_path / "home"
    written = {
        "tower-112/metrics.jsonl": b'{"step": 1}\n',
        "tower-112/step_0000250/model.safetensors": b"old",
        "tower-112/step_0000500/model.safetensors": os.urandom(20 << 20),
        "joint-112/step_0000250/optimizer.safetensors": os.urandom(1000),
        "model/training.json": b"{}",
    }
    for name, data in written.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(data)
    files = gpu_tiny.shards(run, home)
    assert len(files) == 2
    assert all(path.stat().st_size < 16 << 20 for path in files)
    gpu_tiny.join(home, tmp_path / "again")
    found = {
        path.relative_to(tmp_path / "again").as_posix(): path.read_bytes()
        for path in (tmp_path / "again").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    written.pop("tower-112/step_0000250/model.safetensors")
    assert found == written


def test_nothing_to_bring_home_is_said(tmp_path: Path) -> None:
    gpu_tiny = script()
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit, match="holds no checkpoint yet"):
        gpu_tiny.shards(tmp_path / "run", tmp_path / "home")
    with pytest.raises(SystemExit, match=r"holds no tiny.tar.000"):
        gpu_tiny.join(tmp_path / "run", tmp_path / "again")
