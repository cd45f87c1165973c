"""benchmarks/gpu.py from end to end on the CPU with small shapes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def test_every_stage_runs_on_small_shapes_and_both_engines_agree(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--experiments"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert all("error" not in one and "skipped" not in one for one in stages.values())
    for one in stages["tiny against the CPU"].values():
        if isinstance(one, dict):
            assert one["equal_texts"] == one["texts"]
            assert one["largest_logprob_difference"] == 0.0
    layers = stages["two full-width layers against the CPU"]
    assert layers["PaliGemma, float32, products highest"]["relative"] == 0.0
    assert 0 < layers["PaliGemma 2, bfloat16"]["relative"] < 0.05
    for row in (stages["first token"]["56 px"], stages["decoding"]["batch 2"]):
        assert any(name.startswith("transformers") for name in row)
    for kind in ("bfloat16", "int8", "fp8", "int4", "nf4"):
        row = stages["fewer bits"][kind]
        assert (row["against bfloat16"]["relative"] == 0) is (kind == "bfloat16")
        assert row["against bfloat16"]["relative"] < 0.5
        # Few tokens on a busy machine: the difference of two times may be of either sign.
        assert row["first_token_ms"]["min"] > 0
        assert row["tokens_per_s"] != 0
    assert "torchao" in "".join(stages["fewer bits"])
    assert "| 56 px | " in done.stdout
    assert done.stdout.rstrip().endswith("failed: none")


def test_a_stage_that_fails_or_takes_too_long_loses_no_other(
    gpu: ModuleType, tmp_path: Path
) -> None:
    def fails(_: Any) -> dict[str, Any]:
        raise RuntimeError("no kernel image")

    def sleeps(_: Any) -> dict[str, Any]:
        time.sleep(30)
        return {}

    stages = [
        gpu.Stage(name="fails", run=fails),
        gpu.Stage(name="sleeps", run=sleeps, limit_s=1),
        gpu.Stage(name="works", run=lambda _: {"number": 1.0}),
    ]
    bench = gpu.make_bench(is_tiny=True)
    gpu.run_stages(bench, stages, tmp_path, budget_s=60.0)
    found = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert found["fails"]["error"] == "RuntimeError: no kernel image"
    assert found["sleeps"]["error"].startswith("OverTimeError")
    assert found["works"]["number"] == 1.0
    skipped = gpu.run_stages(bench, stages, tmp_path / "again", budget_s=0.0)["stages"]
    assert all("skipped" in one for one in skipped.values())
