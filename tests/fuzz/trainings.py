"""Damaged and hostile trainings: checkpoints that are gone on with, and adapters."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from fuzz.damage import damaged_json, damaged_lines
from fuzz.folders import Files, changed, program
from fuzz.models import damaged_safetensors, model_folder, new_place
from PIL import Image
from toy_training import OPTIM, RandomBatches, TextObjective, small_model

from paligemma.adapt.lora import Adapter, LoraConfig
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.train.loop import LoopOptions, train
from paligemma.weights.adapter import save_adapter
from paligemma.weights.load import load_model

NAME = "trainings"
MAX_MB = 1024

_WAYS = ("go on", "ask", "inspect", "merge")
_DAMAGE = {".json": damaged_json, ".jsonl": damaged_lines, ".safetensors": damaged_safetensors}


def _train(folder: Path, stop_at: int) -> None:
    options = LoopOptions(
        total_steps=6, stop_at=stop_at, log_every=1, save_every=1, num_workers=0, progress=False
    )
    train(small_model(), TextObjective(), RandomBatches(), OPTIM, options, folder)


@cache
def folders() -> dict[str, Path]:
    """A training that was cut after two steps, and an adapter."""
    run, adapter = new_place() / "run", new_place() / "adapter"
    _train(run, stop_at=2)
    model = load_model(model_folder())
    config = LoraConfig(rank=2, alpha=4, parts=("decoder",))
    save_adapter(Adapter.new(model, config, seed=0), model, adapter, base="some/model")
    return {"run": run, "adapter": adapter}


def prepare() -> None:
    """Train and import once, which takes longer than a try."""
    folders()


def make(rng: random.Random) -> tuple[str, tuple[str, Files, str]]:
    """A training with one or two damaged files, and what is done with it."""
    way = rng.choice(_WAYS)
    kind = "run" if way == "go on" else "adapter"
    folder = folders()[kind]
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in _DAMAGE
    )
    said, files = [], {}
    for name in rng.sample(names, k=rng.choice((1, 1, 2))):
        what, files[name] = _DAMAGE[Path(name).suffix]((folder / name).read_bytes(), rng)
        said.append(f"{name}: {what}")
    return f"{way}, {'; '.join(said)}", (kind, files, way)


def attempt(given: tuple[str, Files, str]) -> None:
    """Go on with the training; ask with the adapter, show or merge it."""
    kind, files, way = given
    with changed(folders()[kind], files) as folder:
        if way == "go on":
            _train(folder, stop_at=3)
        elif way == "ask":
            pg = PaliGemma.from_pretrained(model_folder(), adapter=folder)
            pg.read(Image.new("RGB", (40, 30)), max_new_tokens=2)
        elif way == "inspect":
            program("adapter", "inspect", folder, "--model", model_folder())
        else:
            out = folder.parent / "out"
            program("adapter", "merge", folder, "--model", model_folder(), "--output", out)
