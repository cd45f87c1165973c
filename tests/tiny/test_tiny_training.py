"""Stages as the command runs them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from scene_training import mask_codec, tokenizer
from torch import Tensor

from paligemma.tiny.objective import LossWeights
from paligemma.tiny.stages import Stage
from paligemma.tiny.training import run_stage
from paligemma.train.checkpoint import checkpoints

FIRST = Stage(
    name="first",
    window_px=112,
    total_steps=1,
    num_scenes=1,
    prompts_per_scene=1,
    lr=1e-3,
    warmup_steps=0,
)
ALL_HEADS = Stage(
    name="second",
    window_px=112,
    total_steps=1,
    num_scenes=1,
    prompts_per_scene=2,
    lr=1e-3,
    warmup_steps=0,
    losses=LossWeights(edge=0.5, mask_token=0.5, naming=1.0, gathering=0.5),
)


def trained(folder: Path, torch_seed: int) -> dict[str, Tensor]:
    """Every stored tensor of a stage and of one after it that has further heads."""
    torch.manual_seed(torch_seed)
    before: Path | None = None
    tensors = {}
    for stage in (FIRST, ALL_HEADS):
        run_stage(
            stage,
            folder,
            tokenizer=tokenizer(),
            codec=mask_codec(),
            before=before,
            seed=40,
            num_workers=0,
            progress=False,
        )
        (before,) = checkpoints(folder / stage.name)
        for name in ("model", "objective", "optimizer"):
            stored = load_file(before / f"{name}.safetensors")
            tensors |= {f"{stage.name}/{name}/{key}": value for key, value in stored.items()}
    return tensors


def test_two_fresh_runs_are_equal_bit_for_bit(tmp_path: Path) -> None:
    # Whatever drew from torch's generator before.
    first, again = (trained(tmp_path / str(seed), seed) for seed in (1, 2))
    assert {"first/objective/heads.proj.weight", "second/objective/gathering.0.proj.weight"} <= set(
        first
    )
    assert first.keys() == again.keys()
    different = [name for name, value in first.items() if not torch.equal(value, again[name])]
    assert different == []
    # The heads learn, so that they are not equal for want of an update.
    moved = first["second/objective/heads.proj.weight"] - first["first/objective/heads.proj.weight"]
    assert moved.abs().max() > 0
