"""Several processes answer as one does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_workers_answer_as_one_and_go_on_after_a_cut(tmp_path: Path) -> None:
    # A process of its own: Ray warns about things that are errors here, and starts threads.
    done = subprocess.run(
        [sys.executable, HERE / "distributed_run.py", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            # Workers import the benchmark by its name.
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)]),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "num": 100,
        "same": True,
        "same_key": True,
        "same_after_a_cut": True,
        "duplicates": 0,
        "error": "the picture of this worker is gone",
    }
