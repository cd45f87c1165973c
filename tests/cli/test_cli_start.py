"""A command starts quickly, and leaves a torch that can do everything."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_folder import DESK, write_random_tiny

# Each runs in the process in which a command has loaded a model and answered.
_NEEDS = {
    "torch.compile": """
        import torch
        doubled = torch.compile(lambda x: 2 * x + 1, backend="aot_eager", fullgraph=True)
        assert doubled(torch.ones(3)).tolist() == [3, 3, 3]
    """,
    "an integer product": """
        import torch
        ones = torch.ones(32, 32, dtype=torch.int8)
        assert torch._int_mm(ones, ones).unique().tolist() == [32]
        assert torch._int_mm(ones.to("meta"), ones.to("meta")).shape == (32, 32)
    """,
    "a custom operator": """
        import torch
        @torch.library.custom_op("paligemma_tests::twice", mutates_args=())
        def twice(x: torch.Tensor) -> torch.Tensor:
            return 2 * x
        @twice.register_fake
        def _(x):
            return torch.empty_like(x)
        assert twice(torch.ones(2)).tolist() == [2, 2]
        assert twice(torch.ones(2, device="meta")).is_meta
    """,
    "meta tensors": """
        import torch
        with torch.device("meta"):
            layer = torch.nn.Linear(4, 4)
            assert layer(torch.ones(2, 4)).shape == (2, 4)
        assert torch.linalg.qr(torch.empty(3, 2, device="meta")).Q.shape == (3, 2)
    """,
    "a generator": """
        import torch
        assert torch.rand(2, generator=torch.Generator().manual_seed(0)).shape == (2,)
    """,
    "the garbage collector": """
        import gc
        assert gc.isenabled()
    """,
}


@pytest.mark.parametrize("need", _NEEDS.values(), ids=_NEEDS.keys())
def test_after_a_command_torch_can_do_all_it_does(need: str, tmp_path: Path) -> None:
    model = write_random_tiny(tmp_path / "model")
    command = ["answer", str(DESK), "what is it?", "--model", str(model), "--max-new-tokens", "2"]
    script = (
        "from paligemma.cli import main\n"
        f"main({command!r}, standalone_mode=False)\n" + textwrap.dedent(need)
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
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
