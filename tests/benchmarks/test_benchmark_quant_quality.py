"""benchmarks/quant_quality.py from end to end on two scenes and narrow layers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_kind_stands_beside_float32_in_both_tables() -> None:
    options = ("--num-scenes", "2", "--threads", "1", "--narrow", "--kinds", "bf16,int4")
    script = str(BENCHMARKS / "quant_quality.py")
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "command: python quant_quality.py --num-scenes 2" in done.stdout
    rows = re.findall(r"^\| (float32|bf16|int4)\b.*\|$", done.stdout, re.MULTILINE)
    assert rows == ["float32", "bf16", "int4", "bf16", "int4"]
    (fine, coarse) = (
        [float(cell) for cell in re.findall(r"\d\.\de-\d\d", line)]
        for line in done.stdout.splitlines()[-2:]
    )
    assert len(fine) == len(coarse) == 8
    assert max(fine) < 1e-4 < 0.03 < min(coarse) < max(coarse) < 1
