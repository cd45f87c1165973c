"""What fewer bits a weight cost: answers of the embedded model, and errors of full-width layers.

    python benchmarks/quant_quality.py --num-scenes 1000

Every kind answers the same held-out scenes as float32 does, by the benchmark of `paligemma eval
scenes`. Layers of a released size, with random weights, get the inputs that they have in float32;
the error is the norm of the difference over the norm of float32's output.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from paligemma import PaliGemma
from paligemma.adapt.quant import QUANTS, Quant
from paligemma.bench.machine import describe
from paligemma.bench.random_model import random_model
from paligemma.config import release_config
from paligemma.eval.options import EvalOptions
from paligemma.eval.runner import evaluate
from paligemma.eval.scored import score_run
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.tasks.scenes.rows import scenes_task

PLAIN = "float32"
# Name of a measure -> heading; the last three of `eval scenes` are shares of right answers.
MEASURES = {
    "detect_ap50": "AP50",
    "segment_miou": "mIoU",
    "answer_accuracy": "answers",
    "ocr_cer": "CER",
    "caption_exact_match": "captions",
    "caption_region_exact_match": "captions of regions",
}
# A kind that loses more points than this anywhere is not one to choose for others.
BOUND = 1.0
LAYERS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down")
_NUM_TOKENS = 32


def scene_figures(kind: str, num_scenes: int) -> tuple[dict[str, float], list[str]]:
    """Figures times 100 by heading, and all answers in order; `tiny`, or `tiny` of a kind."""
    pg = PaliGemma.from_pretrained("tiny", device="cpu", quant=None if kind == PLAIN else kind)
    task = scenes_task(limit=num_scenes, size_px=pg.processor.image_size_px)
    options = EvalOptions(batch_size=256, num_workers=1)
    with tempfile.TemporaryDirectory() as folder:
        scored = score_run(evaluate(task, pg, None, "heldout", options, folder), task)
    found = {one.name: one.value * one.scale for one in scored.measures}
    return (
        {heading: found[name] for name, heading in MEASURES.items()},
        [one.text for one in scored.predictions],
    )


def print_scenes(kinds: Sequence[str], num_scenes: int) -> None:
    """The table of all kinds, and which of them lose more than the bound."""
    exact, answers = scene_figures(PLAIN, num_scenes)
    print_row(["kind", *exact, "other answers"], is_heading=True)
    print_row([PLAIN, *(f"{value:.1f}" for value in exact.values()), f"of {len(answers):,}"])
    for kind in kinds:
        figures, others = scene_figures(kind, num_scenes)
        gains = {name: figures[name] - exact[name] for name in exact}
        cells = [f"{figures[name]:.1f} ({gain:+.1f})" for name, gain in gains.items()]
        num_other = sum(ours != theirs for ours, theirs in zip(answers, others, strict=True))
        # Of an error rate, more is worse.
        loss = max(gain if name == "CER" else -gain for name, gain in gains.items())
        print_row([kind + ", not a default" * (loss > BOUND), *cells, f"{num_other:,}"])


def print_layers(kinds: Sequence[str], *, width: int, mlp_dim: int) -> None:
    """The table of relative errors of the first block's layers and of the final logits."""
    config = release_config("gemma_2b", 224)
    config = replace(
        config,
        vision=replace(config.vision, depth=1, width=144, mlp_dim=288, num_heads=4),
        text=replace(config.text, depth=2, width=width, mlp_dim=mlp_dim),
        vocab=load_processor("tiny", LoadOptions())[1].vocab,  # a small table will do
    )
    print_row(["kind", *(name.split(".")[1] for name in LAYERS), "logits"], is_heading=True)
    plain = random_model(config, quant=None, dtype=torch.bfloat16).float()
    for kind in kinds:
        model = random_model(config, quant=Quant.parse(kind), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            plain.get_parameter(name).data.copy_(parameter)  # what is not quantised is the same
        inputs, wanted = run(plain)
        _, found = run(model)
        errors = [
            distance(model.get_submodule(name)(inputs[name]), wanted[name])
            for name in (f"text.blocks.0.{layer}" for layer in LAYERS)
        ]
        logits = distance(found["logits"], wanted["logits"])
        print_row([kind, *(f"{error:.1e}" for error in (*errors, logits))])


@torch.no_grad()
def run(model: PaliGemmaModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of the first block's layers, and the final logits, for one prompt."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(_: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
            inputs[name], outputs[name] = given[0], made

        return hook

    names = [f"text.blocks.0.{layer}" for layer in LAYERS]
    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    tokens = torch.randint(
        model.config.vocab.size, (1, _NUM_TOKENS), generator=torch.Generator().manual_seed(1)
    )
    outputs["logits"] = model(None, tokens, torch.ones_like(tokens))
    for hook in hooks:
        hook.remove()
    return inputs, outputs


def distance(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def print_row(cells: Sequence[str], *, is_heading: bool = False) -> None:
    """A row of a table in Markdown."""
    print(f"| {' | '.join(cells)} |", flush=True)
    if is_heading:
        print("|" + "---|" * len(cells))


def print_machine() -> None:
    """Where and how this was measured."""
    for name, value in describe().items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        print(f"{name}: " + ", ".join(f"{part} {one}".strip() for part, one in parts))
    print(f"command: python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-scenes", type=int, default=1000)
    parser.add_argument("--kinds", default=",".join(QUANTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--narrow", action="store_true", help="small layers: tries the script")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kinds = options.kinds.split(",")
    print_machine()
    print(f"\nEmbedded model, {options.num_scenes:,} held-out scenes, times 100:\n")
    print_scenes(kinds, options.num_scenes)
    sizes = (256, 512) if options.narrow else (2048, 16384)
    print("\nTwo decoder layers of width {} and {}, relative error:\n".format(*sizes))
    print_layers(kinds, width=sizes[0], mlp_dim=sizes[1])


if __name__ == "__main__":
    main()
