"""benchmarks/quant_quality.py from end to end on two scenes and narrow layers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_kind_stands_beside_float32_and_its_layers_are_as_far_off_as_four_bits_are() -> None:
    options = ("--num-scenes", "2", "--threads", "1", "--narrow", "--kinds", "int4")
    script = str(BENCHMARKS / "quant_quality.py")
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "command: python quant_quality.py --num-scenes 2" in done.stdout
    rows = re.findall(r"^\| (float32|int4)\b.*\|$", done.stdout, re.MULTILINE)
    assert rows == ["float32", "int4", "int4"]
    errors = [float(cell) for cell in re.findall(r"\d\.\de-\d\d", done.stdout.splitlines()[-1])]
    assert len(errors) == 8
    assert 0.03 < min(errors) < max(errors) < 1
