"""The run of the embedded model comes home in small files, and is the same run again."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paligemma.model.paligemma import init_weights
from paligemma.tiny import training
from paligemma.tiny.stages import Stage

ROOT = Path(__file__).parents[2]


def script():
    spec = importlib.util.spec_from_file_location("gpu_tiny", ROOT / "benchmarks" / "gpu_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents by name, but for locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_finished_run_comes_home_as_model_and_metrics_in_files_below_sixteen_megabytes(
    tmp_path: Path,
) -> None:
    gpu_tiny = script()
    run, home = tmp_path / "run", tmp_path / "home"
    written = {
        "tower-112/metrics.jsonl": b'{"step": 1}\n',
        "tower-112/step_0000500/model.safetensors": b"of no use at home",
        "model/model.safetensors": os.urandom(20 << 20),
        "model/training.json": b"{}",
    }
    for name, data in written.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(data)
    files = gpu_tiny.shards(run, home)
    assert len(files) == 2
    assert all(path.stat().st_size < 16_000_000 for path in files)
    gpu_tiny.join(home, tmp_path / "again")
    written.pop("tower-112/step_0000500/model.safetensors")
    assert files_of(tmp_path / "again") == written


def test_a_run_that_was_cut_comes_home_and_goes_on_to_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Stage(
        name="first",
        window_px=112,
        total_steps=1,
        num_scenes=1,
        prompts_per_scene=0,
        lr=1e-3,
        warmup_steps=0,
    )
    stages = (first, replace(first, name="second", total_steps=2))
    monkeypatch.setattr(training, "BUDGETS", {"card": stages})
    monkeypatch.setattr(training, "init_tiny", init_weights)
    gpu_tiny = script()
    monkeypatch.setattr(gpu_tiny, "BUDGETS", {"card": stages})
    run, home, again = (tmp_path / name for name in ("run", "home", "again"))

    def train(folder: Path) -> Path:
        model = training.train_tiny(folder, budget="card", num_workers=0, progress=False)
        assert model is not None
        return model

    model = train(run)
    expected = (model / "model.safetensors").read_bytes()
    shutil.rmtree(model)
    files = gpu_tiny.shards(run, home)
    assert len(files) <= 8
    assert sum(path.stat().st_size for path in files) < 64 << 20
    assert sorted(path.name for path in home.iterdir()) == [path.name for path in files]
    gpu_tiny.join(home, again)
    before = {name for name in files_of(again) if name.startswith("first/")}
    assert before == {"first/metrics.jsonl"}
    moments = load_file(again / "second" / "step_0000002" / "optimizer.safetensors")
    assert max(value.abs().max() for value in moments.values()) > 0
    assert all(torch.equal(value, value.bfloat16().float()) for value in moments.values())
    finished = train(again)
    assert (finished / "model.safetensors").read_bytes() == expected
    # The first stage was not trained anew.
    assert not (again / "first" / "step_0000001").exists()


def test_nothing_to_bring_home_is_said(tmp_path: Path) -> None:
    gpu_tiny = script()
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit, match="holds no checkpoint yet"):
        gpu_tiny.shards(tmp_path / "run", tmp_path / "home")
    with pytest.raises(SystemExit, match=r"holds no tiny.tar.000"):
        gpu_tiny.join(tmp_path / "run", tmp_path / "again")


def test_files_that_are_not_all_there_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_tiny = script()
    monkeypatch.setattr(gpu_tiny, "SHARD_BYTES", 1000)
    run, home = tmp_path / "run", tmp_path / "home"
    (run / "model").mkdir(parents=True)
    (run / "model" / "training.json").write_text("{}")
    (run / "model" / "model.safetensors").write_bytes(os.urandom(5000))
    first, second, *_, last = gpu_tiny.shards(run, home)
    last.rename(tmp_path / "kept")
    with pytest.raises(SystemExit, match="is not the last file"):
        gpu_tiny.join(home, tmp_path / "again")
    (tmp_path / "kept").rename(last)
    second.rename(tmp_path / "kept")
    with pytest.raises(SystemExit, match=r"holds no tiny\.tar\.001"):
        gpu_tiny.join(home, tmp_path / "again")
    assert files_of(tmp_path / "again") == {}
    # A shorter run leaves none of a longer one.
    (run / "model" / "model.safetensors").write_bytes(b"")
    assert gpu_tiny.shards(run, home) == [first]
    assert list(home.iterdir()) == [first]


def test_a_training_that_fails_brings_nothing_of_an_older_run_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_tiny = script()
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "training.json").write_text("{}")
    words = ["--output", tmp_path / "home", "--run", tmp_path / "run", "--device", "cpu"]
    words += ["--parts", tmp_path / "none", "--seconds", "60"]
    monkeypatch.setattr("sys.argv", ["gpu_tiny.py", *map(str, words)])
    with pytest.raises(SystemExit, match="the training ended with 2"):
        gpu_tiny.main()
    assert not (tmp_path / "home").exists()
