"""A step of LoRA or full training beside transformers and peft: tokens a second, memory, loss.

    python benchmarks/training_step.py                                    # full width, 2 + 2 layers
    python benchmarks/training_step.py --size 3b --device cuda --dtype bfloat16

Both engines read one checkpoint of random weights and train the same layers on the same batch, in
turns in one process; peak memory is measured in a process each. The first loss of both is printed:
with adapters that are still zero and answers of equal length it must be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.batch import Batch
from paligemma.bench.machine import describe, peak_memory_bytes
from paligemma.config import PaliGemmaConfig, release_config
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.train.examples import SuffixLoss
from paligemma.train.optim import Optimizer
from paligemma.tuning.recipe import Recipe
from paligemma.weights.hf import bare_name
from paligemma.weights.load import load_model
from paligemma.weights.save import save_model

# The prompt and the answer of every row.
NUM_PROMPT, NUM_ANSWER = 16, 16
RANK = 16
Step = Callable[[], float]


def config_of(size: str) -> PaliGemmaConfig:
    """The release's config, or one of full width with two layers of tower and decoder each."""
    config = release_config("gemma_2b", 224)
    if size == "3b":
        return config
    layers = {"wide": 2, "narrow": 1}[size]
    vision = replace(config.vision, depth=layers)
    text = replace(config.text, depth=layers)
    if size == "narrow":
        vision = replace(vision, width=144, mlp_dim=288, num_heads=4, image_size_px=56)
        text = replace(text, width=128, mlp_dim=256)
    return replace(config, vision=vision, text=text)


def batch_of(config: PaliGemmaConfig, num_rows: int) -> Batch:
    """Random pictures and tokens; every answer has the same length."""
    generator = torch.Generator().manual_seed(0)
    side, length = config.vision.image_size_px, NUM_PROMPT + NUM_ANSWER
    in_answer = torch.arange(length) >= NUM_PROMPT
    return Batch(
        images=torch.rand(num_rows, side, side, 3, generator=generator) * 2 - 1,
        tokens=torch.randint(3, 200_000, (num_rows, length), generator=generator),
        mask_ar=in_answer.long().expand(num_rows, -1),
        mask_input=torch.ones(num_rows, length, dtype=torch.bool),
        mask_loss=in_answer.float().expand(num_rows, -1),
    )


def our_step(folder: Path, options: argparse.Namespace) -> Step:
    """A function that makes one update and returns its loss."""
    dtype = getattr(torch, options.dtype)
    model = load_model(folder, dtype=dtype, device=options.device)
    recipe = Recipe(lora=LoraConfig(rank=RANK, alpha=RANK) if options.lora else None, lr=1e-4)
    if recipe.lora is not None:
        attach(model, Adapter.new(model, recipe.lora))
    model.train()
    objective = SuffixLoss()
    optimizer = Optimizer(model, recipe.optim(), total_steps=1000)
    batch = batch_of(model.config, options.rows).to(options.device)

    def step() -> float:
        optimizer.zero_grad()
        loss, _ = objective(model, batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def peer_step(folder: Path, options: argparse.Namespace) -> Step:
    """The same of transformers, with peft's adapters on the same layers."""
    import peft
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    ).to(options.device)
    if options.lora:
        layers = [
            f"text.blocks.{layer}.{name}.weight"
            for layer in range(config_of(options.size).text.depth)
            for name in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down")
        ]
        targets = [bare_name(name, 1).removesuffix(".weight") for name in layers]
        lora = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
        model = peft.get_peft_model(model, lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    config = config_of(options.size)
    batch = batch_of(config, options.rows)
    ids = torch.full((options.rows, config.num_image_tokens), config.vocab.size)
    inputs = {
        "input_ids": torch.cat([ids, batch.tokens], dim=1),
        "token_type_ids": torch.cat([torch.zeros_like(ids), batch.mask_ar], dim=1),
        "labels": torch.cat(
            [torch.full_like(ids, -100), batch.tokens.where(batch.mask_ar == 1, -100)], dim=1
        ),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    moved = {name: tensor.to(options.device) for name, tensor in inputs.items()}
    pixels = batch.images.permute(0, 3, 1, 2).to(options.device, getattr(torch, options.dtype))

    def step() -> float:
        optimizer.zero_grad()
        loss = model(pixel_values=pixels, **moved).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


ENGINES = {"ours": our_step, "transformers + peft": peer_step}


def timed(step: Step, device: str) -> tuple[float, float]:
    """Seconds and loss of one update."""
    start = time.perf_counter()
    loss = step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, loss


def write_checkpoint(folder: Path, config: PaliGemmaConfig, dtype: str) -> None:
    model = PaliGemmaModel(config)
    init_weights(model)
    save_model(model, folder, dtype=dtype, pad_rows=True, spelling="current")


def peak_gb(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Peak memory of two steps in a process of its own."""
    words = [sys.executable, __file__, "--only", name, "--folder", str(folder)]
    words += ["--size", options.size, "--device", options.device, "--dtype", options.dtype]
    words += ["--rows", str(options.rows), *([] if options.lora else ["--full"])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def only(options: argparse.Namespace) -> None:
    step = ENGINES[options.only](options.folder, options)
    for _ in range(2):
        step()
    if options.device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated() / 1e9)
    else:
        print((peak_memory_bytes() or 0) / 1e9)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    config = config_of(options.size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        write_checkpoint(folder, config, options.dtype)
        measured = ENGINES if options.memory else ()
        peaks = {name: round(peak_gb(name, folder, options), 2) for name in measured}
        steps = {name: make(folder, options) for name, make in ENGINES.items()}
        first = {name: timed(step, options.device)[1] for name, step in steps.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                seconds[name].append(timed(step, options.device)[0])
    tokens = options.rows * (config.num_image_tokens + NUM_PROMPT + NUM_ANSWER)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ours, theirs = ENGINES
    return {
        "command": " ".join(["python", "benchmarks/training_step.py", *sys.argv[1:]]),
        "machine": machine(options.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "peft": version("peft"),
        "trained": f"LoRA of rank {RANK} on the decoder" if options.lora else "everything",
        "tokens_a_step": tokens,
        "first_loss": first,
        "tokens_per_s": {name: round(tokens / value, 1) for name, value in median.items()},
        "seconds": {name: [round(v, 3) for v in values] for name, values in seconds.items()},
        "peak_gb": peaks,
        "ratio": round(median[theirs] / median[ours], 3),
    }


def machine(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else describe()["cpu"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("narrow", "wide", "3b"), default="wide")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4, help="of the batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", dest="lora", action="store_false", help="train everything")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave peak memory out"
    )
    parser.add_argument("--only", choices=list(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.only:
        only(options)
        return
    print(json.dumps(measure(options), indent=1))


if __name__ == "__main__":
    main()
