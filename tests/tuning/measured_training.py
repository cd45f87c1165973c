"""Run as a program: trains a small model for two updates and prints what it took, as JSON.

python measured_training.py full|lora            one process
torchrun --nproc-per-node 2 measured_training.py full
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import torch

from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.batch import Batch
from paligemma.config import PaliGemmaConfig, release_config
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.train.examples import SuffixLoss
from paligemma.train.optim import Optimizer
from paligemma.tuning.recipe import Recipe

ROWS, NUM_TEXT, NUM_ANSWER = 2, 96, 32


def config() -> PaliGemmaConfig:
    """A decoder of 19 M parameters under a vocabulary of 16,384."""
    base = release_config("gemma_2b", 224)
    vocab = replace(base.vocab, size=16_384, loc0=14_000, seg0=15_100)
    vision = replace(base.vision, width=144, depth=2, mlp_dim=288, num_heads=4, image_size_px=112)
    text = replace(base.text, width=512, depth=4, mlp_dim=2560, num_heads=4, head_dim=128)
    return replace(base, vocab=vocab, vision=vision, text=text)


def recipe(way: str) -> Recipe:
    lora = LoraConfig(rank=16) if way == "lora" else None
    return Recipe(lora=lora, batch_size=ROWS, compute="float32")


def peak() -> int:
    """Most memory that this process has held, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def train(sizes: PaliGemmaConfig, how: Recipe) -> None:
    """Make two updates of a new model."""
    model = PaliGemmaModel(sizes)
    init_weights(model)
    if how.lora is not None:
        attach(model, Adapter.new(model, how.lora))
    model.train()
    optimizer = Optimizer(model, how.optim(), total_steps=10)
    side = sizes.vision.image_size_px
    answers = torch.arange(NUM_TEXT + 1) > NUM_TEXT - NUM_ANSWER
    batch = Batch(
        images=torch.zeros(ROWS, side, side, 3),
        tokens=torch.full((ROWS, NUM_TEXT + 1), 5),
        mask_ar=answers.long().expand(ROWS, -1),
        mask_input=torch.ones(ROWS, NUM_TEXT + 1, dtype=torch.bool),
        mask_loss=answers.float().expand(ROWS, -1),
    )
    objective = SuffixLoss()
    for _ in range(2):
        optimizer.zero_grad()
        loss, _ = objective(model, batch)
        loss.backward()
        optimizer.step()


def main(way: str) -> None:
    torch.set_num_threads(1)
    whole = config()
    # What libraries load when they are first used is not the model's.
    train(replace(whole, text=replace(whole.text, width=64, mlp_dim=128, depth=1)), recipe(way))
    before = peak()
    train(whole, recipe(way))
    print(json.dumps({"bytes": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)
