"""The kernels of a decoding step on a GPU, beside torch's layers on the CPU.

Triton computes them in its interpreter here, which has no products of bfloat16; tests/gpu runs them
on a card. That a compiler takes them, in every dtype, is tried without a card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_model_oracle import SMALL, VOCAB, loud_model

from paligemma.config import release_config
from paligemma.kernels.gpu_step import SWITCH
from paligemma.model import PaliGemmaModel
from paligemma.model.gpu_route import find_step
from paligemma.tiny.start import tiny_config
from paligemma.weights.fewer_bits import in_fewer_bits

pytest.importorskip("triton", reason="make test-triton installs it")

CAPPED = {"final_softcap": 3.0, "sliding_window": 4}
PROMPTS = torch.randint(300, 1400, (3, 9), generator=torch.Generator().manual_seed(3))
VALID = torch.tensor(
    [[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0]]
).bool()


def small_model(generation: str, quant: str | None, **changed: Any) -> PaliGemmaModel:
    base = tiny_config(VOCAB, 32)
    vision = replace(base.vision, width=24, depth=1, mlp_dim=32, num_heads=2)
    sizes = {"width": 64, "depth": 2, "mlp_dim": 96, "num_heads": 8, "head_dim": 32}
    text = replace(base.text, **{**sizes, **SMALL[generation], **changed})
    model = loud_model(replace(base, vision=vision, text=text)).requires_grad_(False)
    return model if quant is None else in_fewer_bits(model, quant)


@torch.inference_mode()
def largest_distances(
    model: PaliGemmaModel, cache_dtype: torch.dtype, num_steps: int
) -> dict[str, float]:
    """How far logits, and keys of the last block, are from those of torch's layers."""
    step, _ = find_step(model.text)
    caches = [model.new_cache(3, 16, cache_dtype) for _ in range(2)]
    for cache in caches:
        _, positions = model.prefill(None, PROMPTS, torch.zeros_like(PROMPTS), VALID, cache)
    found = {"logits": 0.0, "keys": 0.0}
    generator = torch.Generator().manual_seed(4)
    for _ in range(num_steps):
        tokens = torch.randint(300, 1400, (3,), generator=generator)
        theirs = model.decode_step(tokens, positions, caches[0])
        ours = step(tokens, positions, caches[1].claim_next(), caches[1])
        positions = positions + 1
        found["logits"] = max(found["logits"], float((ours - theirs).norm() / theirs.norm()))
        keys = [cache.keys[-1].float() for cache in caches]
        found["keys"] = max(found["keys"], float((keys[0] - keys[1]).norm() / keys[0].norm()))
        assert torch.equal(caches[0].valid, caches[1].valid)
        assert torch.equal(caches[0].positions, caches[1].positions)
    return found


@pytest.mark.parametrize(
    ("generation", "quant", "changed", "cache"),
    [
        ("gemma", None, {}, "float32"),
        ("gemma", None, {}, "bfloat16"),
        ("gemma2", None, CAPPED, "float32"),
        ("gemma", "int8", {}, "float32"),
        ("gemma", "fp8,head=int8", {}, "float32"),
        ("gemma", "int4", {}, "float32"),
    ],
)
def test_a_step_is_that_of_torchs_layers(
    generation: str, quant: str | None, changed: dict[str, Any], cache: str
) -> None:
    """In a process of its own: Triton decides at import whether it interprets."""
    command = [sys.executable, __file__, generation, str(quant), json.dumps(changed), cache]
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests / "model"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    # The interpreter cuts a float32 to bfloat16 where a card and torch round it.
    bound = 1e-5 if cache == "float32" else 1e-2
    assert 0 < found["logits"] < bound
    assert found["keys"] < bound


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("variant", "kind", "dtype", "rows"),
    [
        ("gemma_2b", None, torch.bfloat16, 1),
        ("gemma_2b", None, torch.float32, 2),
        ("gemma2_9b", None, torch.bfloat16, 64),
        ("gemma2_27b", "int8", torch.bfloat16, 8),
        ("gemma_2b", "fp8", torch.bfloat16, 1),
        ("gemma2_2b", "int4", torch.bfloat16, 1),
    ],
)
def test_a_compiler_takes_every_kernel(
    variant: str,
    kind: str | None,
    dtype: torch.dtype,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from compiled_kernels import Compiling, launched

    config = release_config(variant, 224)
    config = replace(config, text=replace(config.text, depth=2))
    kernels = Compiling()
    launched(config, kind, dtype, rows, kernels, monkeypatch)
    names = {"begin", "project", "attend", "combine", "multiply", "gate"}
    assert {name for name, _ in kernels.compiled} >= names
    # An H100 gives a program no more shared memory than this.
    assert max(shared for _, shared in kernels.compiled) <= 227 << 10


def test_the_switch_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    from paligemma.kernels.gpu_step import why_not

    assert why_not() == "PALIGEMMA_GPU_STEP is not on"
    monkeypatch.setenv(SWITCH, "on")
    assert why_not() is None


if __name__ == "__main__":
    generation, quant, changed, cache = sys.argv[1:]
    model = small_model(generation, None if quant == "None" else quant, **json.loads(changed))
    print(json.dumps(largest_distances(model, getattr(torch, cache), num_steps=2)))
