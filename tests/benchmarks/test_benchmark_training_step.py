"""benchmarks/training_step.py on a narrow model: both engines begin with the same loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_step.py"


def test_both_engines_train_the_same_layers_from_the_same_loss() -> None:
    words = [sys.executable, str(SCRIPT), "--size", "narrow", "--rows", "1", "--rounds", "1"]
    done = subprocess.run([*words, "--threads", "1", "--no-memory"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    ours, theirs = report["first_loss"].values()
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert report["ratio"] > 0
