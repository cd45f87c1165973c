"""Torch is imported without what only tracing needs, and loses nothing by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_folder import DESK, write_random_tiny

_SCRIPT = """
import sys
from paligemma.cli.start import quick_start
with quick_start(greedy=True):
    import torch
assert "torch._meta_registrations" not in sys.modules
assert not hasattr(torch, "_meta_registrations")
assert "torch._decomp" not in sys.modules
with torch.device("meta"):
    layer = torch.nn.Linear(4, 4)
assert layer.weight.is_meta
x = torch.ones(1, 2, 4, requires_grad=True)
torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
assert x.grad.isfinite().all()
import torch._meta_registrations
assert torch.linalg.qr(torch.empty(3, 2, device="meta")).Q.shape == (3, 2)
import gc
assert gc.isenabled()
"""


def test_torch_starts_without_shape_functions_and_takes_them_later() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["--temperature", "1"],
        ["--top-p", "0.9"],
        ["--beams", "2"],
        ["--best-of", "2", "--temperature", "1"],
    ],
)
def test_every_way_to_decode_works_in_a_process_of_its_own(how: list[str], tmp_path: Path) -> None:
    model = write_random_tiny(tmp_path / "model")
    command = [sys.executable, "-m", "paligemma", "answer", str(DESK), "what is it?"]
    done = subprocess.run(
        [*command, "--model", str(model), "--json", "--max-new-tokens", "3", *how],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "text" in json.loads(done.stdout)
