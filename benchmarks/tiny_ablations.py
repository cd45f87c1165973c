"""What the first paper's choices are worth at the scale of the embedded model.

    paligemma train tiny --output runs/tiny --stage tower-112 --precision bfloat16
    python benchmarks/tiny_ablations.py --tower runs/tiny/tower-112 --output runs/ablations

Every variant starts from the same tower and trains the stage joint-112 for some steps, on the same
pictures and prompts in the same order; the projector starts anew. With --joint, two others go on
from the end of that stage: the next one at 224 px, or as many updates of the same one. Measured on
held-out windows, with --joint on whole pictures of 224 px, are
the loss of the true answers in nats a token, and the share of answers of which every token is the
likeliest (teacher-forced). Intervals are 95 % percentile bootstraps over pictures, and differences
from the first variant are paired. A variant whose folder is complete is not trained again; a folder
of another tower, stage or precision is refused.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from paligemma.bench.machine import describe
from paligemma.model.paligemma import PaliGemmaModel
from paligemma.outputs.vqvae import load_mask_codec
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.scenes import KINDS
from paligemma.tasks.scenes.rows import EVAL_SEED
from paligemma.tiny.data import SceneBatch, SceneSource
from paligemma.tiny.objective import SceneObjective, window_positions
from paligemma.tiny.stages import STAGES, Stage
from paligemma.tiny.start import PATCH_PX, TRAIN_SEED, init_tiny, tiny_config
from paligemma.tiny.training import EMBEDDED, PART_FILES
from paligemma.train.checkpoint import checkpoints
from paligemma.train.loop import LoopOptions, train
from paligemma.train.loss import token_losses
from paligemma.train.optim_config import OptimConfig
from paligemma.weights.hashes import sha256
from paligemma.whole_file import write_json

BASE = "prefix-LM, open tower, linear"
VARIANTS = {
    BASE: "as the embedded model is trained",
    "causal text": "each token of the prompt sees those before it alone",
    "frozen tower": "the tower keeps the weights of its own stage",
    "MLP connector": "two layers with GELU between tower and decoder",
    "no tower stage": "the tower starts from random weights",
}
# Those that go on from joint-112, with their stage.
LATER = {"stage at 224 px": STAGES[2], "112 px for longer": STAGES[1]}
_TEXT_LEN = 128
_BOOTSTRAPS = 2000


@dataclass(frozen=True, kw_only=True)
class Causal:
    """A source whose prompts are read causally."""

    source: SceneSource

    def batch(self, step: int) -> SceneBatch:
        made = self.source.batch(step)
        return replace(made, text=replace(made.text, mask_ar=torch.ones_like(made.text.mask_ar)))


class Connector(nn.Sequential):
    """Two layers in the place of the linear projector."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, text_width))


def source_of(stage: Stage, parts: Path, seed: int, *, causal: bool) -> SceneSource | Causal:
    tokenizer = Tokenizer.from_file(parts / PART_FILES["tokenizer"])
    source = SceneSource(
        stage=stage,
        processor=Processor(tokenizer, stage.window_px),
        field_px=224,
        codec=load_mask_codec(parts / PART_FILES["mask_codec"]),
        patch_px=PATCH_PX,
        text_len=_TEXT_LEN,
        seed=seed,
    )
    return Causal(source=source) if causal else source


def start(variant: str, begun_from: Path, parts: Path) -> PaliGemmaModel:
    """The model before its first update; all variants have the same decoder."""
    vocab = Tokenizer.from_file(parts / PART_FILES["tokenizer"]).vocab
    model = PaliGemmaModel(tiny_config(vocab))
    init_tiny(model)
    if variant != "no tower stage":
        found = load_file(checkpoints(begun_from)[-1] / "model.safetensors")
        part = "" if variant in LATER else "vision."
        kept = {name: value for name, value in found.items() if name.startswith(part)}
        model.load_state_dict(kept, strict=False)
    if variant == "MLP connector":
        torch.manual_seed(0)
        config = model.config
        model.projector = Connector(config.vision.width, config.text.width)  # type: ignore[assignment]
    return model


def optim_of(variant: str, stage: Stage) -> OptimConfig:
    optim = stage.optim()
    if variant != "frozen tower":
        return optim
    return replace(optim, schedule=(("img/(?!head).*", None), *optim.schedule))


@torch.no_grad()
def measure(model: PaliGemmaModel, source: Any, num_batches: int) -> dict[str, list[Any]]:
    """Picture, loss in nats a token, and exactness of every held-out prompt."""
    found: dict[str, list[Any]] = {"picture": [], "loss": [], "exact": []}
    for step in range(num_batches):
        batch = source.batch(step)
        text, images = batch.text, batch.text.images
        soft = model.projector(model.vision(images, window_positions(model, batch)))
        soft = soft.repeat_interleave(len(text.tokens) // len(soft), dim=0)
        logits = model(soft, text.tokens[:, :-1], text.mask_ar[:, :-1])
        targets, weights = text.tokens[:, 1:], text.mask_loss[:, 1:].float()
        losses = token_losses(logits, targets) * weights
        right = (logits.argmax(dim=-1) == targets) | (weights == 0)
        found["loss"] += (losses.sum(dim=1) / weights.sum(dim=1)).tolist()
        found["exact"] += right.all(dim=1).tolist()
        each = len(text.tokens) // len(images)
        found["picture"] += [step * len(images) + k // each for k in range(len(text.tokens))]
    return found


def interval(values: np.ndarray, pictures: np.ndarray) -> list[float]:
    """Mean and 95 % percentile interval over pictures."""
    draw = np.random.default_rng(0)
    number = pictures.max() + 1
    sums = np.bincount(pictures, values, number)
    counts = np.bincount(pictures, minlength=number)
    picks = draw.integers(0, number, (_BOOTSTRAPS, number))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return [round(float(x), 4) for x in (values.mean(), low, high)]


def count(word: str) -> int:
    """A number of 1 or more."""
    if (number := int(word)) < 1:
        raise ValueError
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    begun = parser.add_mutually_exclusive_group(required=True)
    begun.add_argument("--tower", type=Path, help="folder of the stage tower-112")
    begun.add_argument("--joint", type=Path, help="folder of the stage joint-112, to go on from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", type=Path, default=EMBEDDED)
    parser.add_argument("--steps", type=count, default=600)
    parser.add_argument("--batches", type=count, default=24, help="of 16 held-out pictures")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=count, default=2)
    options = parser.parse_args()
    begun_from = options.joint or options.tower
    if not checkpoints(begun_from):
        stage_name = "tower-112" if options.joint is None else "joint-112"
        raise SystemExit(f"{begun_from} holds no checkpoint of {stage_name}; train it as above")
    torch.set_num_threads(options.threads)
    chosen = dict.fromkeys(options.variants, STAGES[1]) if options.joint is None else LATER
    measured: dict[str, dict[str, np.ndarray]] = {}
    record: dict[str, Any] = {"machine": describe("torch"), "steps": options.steps, "kinds": KINDS}
    first = next(iter(chosen))
    for variant, base in chosen.items():
        warmup = min(base.warmup_steps, options.steps // 6)
        stage = replace(base, total_steps=options.steps, warmup_steps=warmup)
        model = start(variant, begun_from, options.parts)
        torch.manual_seed(0)
        objective = SceneObjective(
            model.config.vision.width,
            text_width=model.config.text.width,
            weights=stage.losses,
            codec=load_mask_codec(options.parts / PART_FILES["mask_codec"]),
            precision=getattr(torch, options.precision),
        )
        began = time.monotonic()
        causal = variant == "causal text"
        train(
            model,
            objective,
            source_of(stage, options.parts, TRAIN_SEED + 10_000_000, causal=causal),
            optim_of(variant, stage),
            LoopOptions(total_steps=options.steps, num_workers=1, keeps_frozen=False),
            options.output / variant.replace(" ", "-").replace(",", ""),
            settings={
                "variant": variant,
                "stage": asdict(stage),
                "precision": options.precision,
                "tower": sha256(checkpoints(begun_from)[-1] / "model.safetensors"),
            },
        )
        asked = chosen[first]
        held_out = replace(asked, scenes=replace(asked.scenes, split="heldout", thing_jitter=1.0))
        source = source_of(held_out, options.parts, EVAL_SEED, causal=causal)
        rows = {k: np.array(v) for k, v in measure(model, source, options.batches).items()}
        measured[variant] = rows
        record[variant] = {
            "what": VARIANTS.get(variant, f"from joint-112 on, {options.steps} updates"),
            "seconds": round(time.monotonic() - began, 1),
            "loss": interval(rows["loss"], rows["picture"]),
            "exact": interval(rows["exact"].astype(float), rows["picture"]),
            "loss_difference": interval(rows["loss"] - measured[first]["loss"], rows["picture"]),
            "exact_difference": interval(
                rows["exact"].astype(float) - measured[first]["exact"], rows["picture"]
            ),
        }
        write_json(options.output / "ablations.json", record)
        print(variant, json.dumps(record[variant]))


if __name__ == "__main__":
    main()
