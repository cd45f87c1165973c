"""Training steps on a CUDA device are those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paligemma import PaliGemma
from paligemma.batch import Batch
from paligemma.model import PaliGemmaModel
from paligemma.train.checkpoint import checkpoints
from paligemma.train.loop import LoopOptions, train
from paligemma.train.loss import training_loss
from paligemma.train.optim import Optimizer
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig

OPTIM = OptimConfig(lr=1e-3, wd=1e-4, schedule=((".*", ScheduleConfig(warmup_steps=1)),))


class TextObjective(nn.Module):
    """The original's loss as the loop calls it."""

    def forward(self, model: PaliGemmaModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return training_loss(model, batch).loss, {}


class OnGpu:
    """The same batch at every step, on the GPU: the loop moves nothing."""

    def __init__(self, made: Batch) -> None:
        self.made = made.to("cuda")

    def batch(self, step: int) -> Batch:
        return self.made


def batch_of(pg: PaliGemma, pictures: list[np.ndarray]) -> Batch:
    return pg.processor.training_batch(
        pictures, ["caption en"] * 4, ["a star", "two circles", "", "a digit 3"], text_len=32
    )


def test_losses_gradients_and_updates_are_those_of_the_cpu(pictures: list[np.ndarray]) -> None:
    losses: dict[str, list[float]] = {}
    gradients: dict[str, dict[str, Tensor]] = {}
    for name in ("cuda", "cpu"):
        pg = PaliGemma.from_pretrained("tiny", device=name)
        batch = batch_of(pg, pictures).to(name)
        optimizer = Optimizer(pg.model, OPTIM, total_steps=8)
        losses[name] = []
        for step in range(3):
            optimizer.zero_grad()
            loss = training_loss(pg.model, batch).loss
            loss.backward()
            if step == 0:
                gradients[name] = {
                    key: one.grad.cpu().clone()  # The next step writes into it.
                    for key, one in pg.model.named_parameters()
                    if one.grad is not None
                }
            losses[name] += [loss.item(), optimizer.step()["grad_norm"].item()]
    assert losses["cuda"][:2] == pytest.approx(losses["cpu"][:2], rel=1e-4)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-2)
    assert losses["cuda"][-2] < losses["cuda"][0]
    whole = losses["cpu"][1]
    for key, expected in gradients["cpu"].items():
        # Some gradients are zero but for rounding: the bias of keys changes no attention.
        difference = (gradients["cuda"][key] - expected).norm()
        assert difference <= 1e-3 * expected.norm() + 1e-5 * whole, key


def test_the_loop_trains_stops_and_goes_on_where_the_source_moves_its_batches(
    pictures: list[np.ndarray], tmp_path: Path
) -> None:
    def run(folder: Path, **changes: Any) -> tuple[PaliGemmaModel, dict[str, Any]]:
        pg = PaliGemma.from_pretrained("tiny", device="cuda")
        source = OnGpu(batch_of(pg, pictures))
        options = LoopOptions(
            total_steps=4, log_every=2, save_every=2, num_workers=0, progress=False, **changes
        )
        return pg.model, train(pg.model, TextObjective(), source, OPTIM, options, folder)

    whole, last = run(tmp_path / "whole")
    assert last["step"] == 4
    assert whole.device.type == "cuda"
    run(tmp_path / "parts", stop_at=2)
    assert len(checkpoints(tmp_path / "parts")) == 1
    parts, again = run(tmp_path / "parts")
    # Sums on a GPU may change their order between runs.
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-3)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
