"""Training on a GPU, unattended: parity of an update, speed and memory beside peft, utilisation.

    python benchmarks/gpu_training.py                     # an H100 with torch, transformers, peft
    python benchmarks/gpu_training.py --small             # the same way on small shapes, on a CPU

Each stage has a time limit of its own and a process of its own, so one that fails loses no other.
What was measured stands in gpu_training.json as soon as a stage is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from training_step import NUM_ANSWER, NUM_PROMPT, RANK, batch_of, config_of, machine

from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.train.examples import SuffixLoss
from paligemma.train.optim import Optimizer
from paligemma.tuning.footprint import Rows, footprint
from paligemma.tuning.plan import CARDS
from paligemma.tuning.recipe import Recipe
from paligemma.whole_file import write_json

LIMIT_S = 240


def updates(device: str, *, lora: bool, dtype: torch.dtype) -> tuple[list[float], torch.Tensor]:
    """Losses of three updates of a narrow model, and what its parameters have become."""
    model = PaliGemmaModel(config_of("narrow"))
    init_weights(model)
    torch.nn.init.normal_(
        model.projector.weight, std=0.02, generator=torch.Generator().manual_seed(1)
    )
    recipe = Recipe(lora=LoraConfig(rank=RANK) if lora else None, lr=1e-3, warmup_percent=0.1)
    model = model.to(device)
    if recipe.lora is not None:
        attach(model, Adapter.new(model, recipe.lora))
    model.train()
    optimizer = Optimizer(model, recipe.optim(), total_steps=10)
    objective, losses = SuffixLoss(compute_dtype=dtype), []
    for _ in range(3):
        optimizer.zero_grad()
        loss, _ = objective(model, batch_of(model.config, 2))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    trained = [p.detach().float().cpu().flatten() for p in optimizer.trained]
    return losses, torch.cat(trained)


def parity(options: argparse.Namespace) -> dict[str, Any]:
    """The same updates on the device and on the CPU, in float32 and with bfloat16 products."""
    torch.set_float32_matmul_precision("highest")
    found = {}
    for name, lora in (("adapter", True), ("whole model", False)):
        expected, there = updates("cpu", lora=lora, dtype=torch.float32)
        for dtype in (torch.float32, torch.bfloat16):
            losses, here = updates(options.device, lora=lora, dtype=dtype)
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = {
                "losses": losses,
                "losses_on_the_cpu": expected,
                "largest_loss_difference": max(
                    abs(a - b) for a, b in zip(losses, expected, strict=True)
                ),
                "largest_parameter_difference": float((here - there).abs().max()),
            }
    return found


def beside_peft(options: argparse.Namespace, *, lora: bool) -> dict[str, Any]:
    """`training_step.py` in a process of its own, with the share of the card's peak."""
    size, dtype = ("narrow", "float32") if options.small else ("3b", "bfloat16")
    rows = 2 if options.small else 16 if lora else 8
    words = ["--size", size, "--dtype", dtype, "--rows", rows, "--device", options.device]
    words += ["--rounds", 2 if options.small else 5, *([] if lora else ["--full"])]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("training_step.py")), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout)
    config = config_of(size)
    work = footprint(
        config,
        Recipe(lora=LoraConfig(rank=RANK) if lora else None, batch_size=rows),
        Rows(count=rows, num_text=NUM_PROMPT + NUM_ANSWER - 1, num_answer=NUM_ANSWER),
        base_dtype=getattr(torch, dtype),
        compute_dtype=getattr(torch, dtype),
    )
    card = next((one for name, one in CARDS.items() if name.split("-")[0] in card_name()), None)
    peak = None if card is None else card.flops
    found["tflop_a_step"] = round(work.flops / 1e12, 3)
    found["model_flops_utilisation"] = {
        name: None if peak is None else round(rate / found["tokens_a_step"] * work.flops / peak, 4)
        for name, rate in found["tokens_per_s"].items()
    }
    return found


def card_name() -> str:
    return torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="narrow models, to try it on a CPU")
    parser.add_argument("--output", type=Path, default=Path("gpu_training.json"))
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu_training.py", *sys.argv[1:]]),
        "machine": machine(options.device),
        "torch": torch.__version__,
        "stages": {},
    }
    stages = {
        "parity": lambda: parity(options),
        "adapter beside transformers + peft": lambda: beside_peft(options, lora=True),
        "whole model beside transformers": lambda: beside_peft(options, lora=False),
    }
    for name, run in stages.items():
        started = time.monotonic()
        try:
            record["stages"][name] = run()
        except Exception as error:
            record["stages"][name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
        record["stages"][name]["stage_s"] = round(time.monotonic() - started, 1)
        write_json(options.output, record)
    print(json.dumps(record, indent=1))
    failed = [name for name, found in record["stages"].items() if "error" in found]
    print(f"stages: {len(stages)}, failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
