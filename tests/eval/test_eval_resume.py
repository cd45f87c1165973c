"""Kill -9 at any moment: the run goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_twenty_kills_at_random_moments_change_no_answer_and_no_score(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "20", "1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])},
    )
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen["kills"] == 20
    # The kills fell on runs that had begun, at many different places.
    assert len(set(seen["progress"])) > 5
    assert max(seen["progress"]) > 60
    assert seen["same"] == [True] * len(seen["same"])
    assert seen["values"] == [seen["value"]] * len(seen["values"])
    assert 0.2 < seen["value"] < 0.5
    assert set(seen["missing"]) == {0}
    assert set(seen["duplicates"]) == {0}
    assert set(seen["lines"]) == {190}


def test_a_run_is_driven_without_loading_torch() -> None:
    code = (
        "import sys, paligemma.eval.runner, paligemma.eval.foreign; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
