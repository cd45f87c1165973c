"""Kill -9 at any moment: the training goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_twenty_kills_at_random_moments_change_no_number_and_no_file(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_training.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", script, tmp_path, "20"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])},
    )
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert len(seen["kills"]) == 20
    assert {"before the first checkpoint", "in a save", "between saves"} == set(seen["kills"])
    assert seen["lines"] == [4, 6]
    assert seen["different"] == []
