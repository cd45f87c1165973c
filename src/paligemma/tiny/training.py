"""Training of the embedded model: every stage of `tiny.stages`, and the export."""

import json
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from paligemma.errors import CheckpointError, ConfigError
from paligemma.json_file import read_json
from paligemma.model.paligemma import PaliGemmaModel
from paligemma.one_writer import one_writer
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.pipeline.devices import find_devices
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tiny.data import SceneSource
from paligemma.tiny.objective import SceneObjective
from paligemma.tiny.stages import BUDGETS, Stage
from paligemma.tiny.start import PATCH_PX, TRAIN_SEED, init_tiny, tiny_config
from paligemma.train.checkpoint import checkpoints
from paligemma.train.loop import METRICS_FILE, LoopOptions, train
from paligemma.weights.hashes import sha256
from paligemma.weights.save import save_model
from paligemma.whole_file import remove_unfinished, write_json

EMBEDDED = Path(str(resources.files("paligemma"))) / "models" / "tiny"
PART_FILES = {"tokenizer": "tokenizer.model", "mask_codec": "mask_codec.safetensors"}
# Tells the folder of a finished model from any other.
_RECORD = "training.json"
_TEXT_LEN = 128
# Every stage draws its own pictures.
_SEEDS_A_STAGE = 10_000_000


def train_tiny(
    output: Path,
    *,
    parts: Path = EMBEDDED,
    only: str | None = None,
    budget: str = "cpu",
    precision: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    compiled: bool = False,
    num_workers: int = 1,
    progress: bool = True,
) -> Path | None:
    """Train the embedded model, or continue its training, and write it as a folder.

    Args:
        output: folder of the stages; the model is written to `output/model`.
        parts: folder of the tokenizer and the mask codec, named as in `PART_FILES`.
        only: name of the one stage to run; the stages before it must be complete.
        budget: one of `stages.BUDGETS`: how large the steps are, and how many.
        precision: type in which matrices are multiplied; parameters and updates are float32.
        device: where the updates are computed.
        compiled: compiles attention and MLPs by `torch.compile`, which needs a C++ compiler.
        num_workers: processes that draw pictures.

    Returns:
        The model's folder, or None while the last stage has not been run.

    Raises:
        ConfigError: a stage of that name or the device does not exist, the stage before it is not
            complete, a file of `parts` is missing, or another process writes to the folder.
        CheckpointError: the stage before is damaged, or was trained with other parts.
    """
    where, *others = find_devices(device)
    if others:
        raise ConfigError(f"a training of the embedded model takes one device, got {device}")
    stages = BUDGETS[budget]
    names = [stage.name for stage in stages]
    if only is not None and only not in names:
        raise ConfigError(f"a stage must be one of {', '.join(names)}, got {only!r}")
    files = {part: parts / name for part, name in PART_FILES.items()}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise ConfigError(
            f"a training needs {' and '.join(PART_FILES.values())} in one folder, but {parts} "
            f"lacks {' and '.join(missing)}; make them with `paligemma train tokenizer` and "
            "`paligemma train codec`"
        )
    folder = output / "model"
    if folder.is_symlink() or (folder.exists() and not (folder / _RECORD).is_file()):
        raise ConfigError(
            f"the finished model is written to {folder}, which holds something else; move that "
            "away or use another output folder"
        )
    tokenizer, codec = Tokenizer.from_file(files["tokenizer"]), load_mask_codec(files["mask_codec"])
    hashes = {part: sha256(path) for part, path in files.items()}
    model = None
    with one_writer(output):
        first = _first_stage(output, stages) if only is None else 0
        for index, stage in enumerate(stages):
            if only not in (None, stage.name) or index < first:
                continue
            model = run_stage(
                stage,
                output,
                tokenizer=tokenizer,
                codec=codec,
                before=_start_of(output, stages, index),
                seed=_seed_of(index),
                settings=hashes,
                precision=precision,
                device=where,
                compiled=compiled,
                num_workers=num_workers,
                progress=progress,
            )
        if model is None or only not in (None, names[-1]):
            return None
        model.cpu()
        # Its locations are sure to some pixels, not to a bin; see `LocationGreedy`.
        model.config = replace(model.config, weigh_locations=True)
        options: dict[str, str | int] = {
            "budget": budget,
            "precision": _name(precision),
            "device": str(device),
            "compile": compiled,
            "workers": num_workers,
        }
        # The folder appears with its record or not at all; without one it counts as another's.
        write_json(output / _RECORD, training_record(output, stages, options))
        beside = (*files.values(), output / _RECORD)
        remove_unfinished(output, re.compile("model"))  # 20 MB of each save that was killed
        return save_model(
            model, output / "model", dtype="float16", extra_files=beside, overwrite=True
        )


def _seed_of(index: int) -> int:
    """First scene seed of the stage with this index."""
    return TRAIN_SEED + index * _SEEDS_A_STAGE


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run_stage(
    stage: Stage,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    codec: MaskCodec | None,
    before: Path | None,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    num_workers: int = 1,
    precision: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    compiled: bool = False,
    progress: bool = True,
) -> PaliGemmaModel:
    """Run or resume one stage; equal arguments, machine and thread count give an equal model.

    Args:
        folder: folder of the whole training; the stage writes to `folder/NAME`.
        codec: mask codec that writes the targets of segmentation; None where nothing is segmented.
        before: checkpoint of the stage before, or None to start from `init_tiny`.
        seed: first scene seed of this stage, and seed of the objective's new heads.
        settings: hashes of the parts, which a run must share with the stage before it.

    Returns:
        The model on `device`, in evaluation mode.

    Raises:
        CheckpointError: a checkpoint is of other parts, options or seed, or cannot be read.
        RunError: a loss or a gradient is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        # The heads of the objective draw their weights from torch's global generator.
        torch.manual_seed(seed)
        model = PaliGemmaModel(tiny_config(tokenizer.vocab))
        objective = SceneObjective(
            model.config.vision.width,
            text_width=model.config.text.width,
            weights=stage.losses,
            codec=codec,
            precision=precision,
        )
    if before is None:
        init_tiny(model)
    else:
        tensors, of_objective = _read_before(before, settings or {})
        model.load_state_dict(tensors)
        _load_objective(objective, of_objective)
    model.to(device)
    objective.to(device)
    if compiled:
        for block in (*model.vision.blocks, *model.text.blocks):
            for part in (block.attn, block.mlp):
                assert isinstance(part, torch.nn.Module)
                part.compile(dynamic=True)
    source = SceneSource(
        stage=stage,
        processor=Processor(tokenizer, stage.window_px),
        field_px=model.config.vision.image_size_px,
        codec=codec,
        patch_px=PATCH_PX,
        text_len=_TEXT_LEN,
        seed=seed,
    )
    options = LoopOptions(
        total_steps=stage.total_steps,
        num_workers=num_workers,
        progress=progress,
    )
    train(
        model,
        objective,
        source,
        stage.optim(),
        options,
        folder / stage.name,
        settings={
            "stage": asdict(stage),
            "seed": seed,
            "precision": _name(precision),
            **(settings or {}),
        },
    )
    return model


def _read_before(before: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Tensor], ...]:
    """The tensors of model and objective that a stage goes on with.

    Args:
        settings: hashes of the parts, by the names of `PART_FILES`.

    Raises:
        CheckpointError: they are not as they were written, or were trained with other parts.
    """
    try:
        stored = read_json(before / "state.json")
        run, digests = dict(stored["run"]), dict(stored["sha256"])
        files = {part: before / f"{part}.safetensors" for part in ("model", "objective")}
        if odd := [path.name for part, path in files.items() if sha256(path) != digests[part]]:
            raise ValueError(f"{' and '.join(odd)} is not as it was written")
        tensors = tuple(load_file(path) for path in files.values())
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"a stage goes on with the stage before it, but {before} cannot be read ({error}); "
            "delete that folder and run its stage again"
        ) from error
    if changed := [name for name in PART_FILES if run.get(name) != settings.get(name)]:
        raise CheckpointError(
            f"all stages of a training share their parts, but {' and '.join(changed)} changed "
            f"since {before} was trained; use another output folder"
        )
    return tensors


def _load_objective(objective: SceneObjective, tensors: dict[str, Tensor]) -> None:
    """Take over the heads of the stage before; a head that it did not have starts anew."""
    later = ("edges.", "mask_tokens.", "naming.", "gathering.")
    new = {name: value for name, value in objective.state_dict().items() if name.startswith(later)}
    objective.load_state_dict(new | tensors)


def _first_stage(output: Path, stages: Sequence[Stage]) -> int:
    """Index of the first stage that is to be run or looked at.

    A run that was brought from another machine may hold the checkpoint of its newest stage alone.
    """
    begun = [index for index, stage in enumerate(stages) if checkpoints(output / stage.name)]
    return min(begun, default=0)


def _start_of(output: Path, stages: Sequence[Stage], index: int) -> Path | None:
    """The checkpoint that a stage starts from: the last one of the stage before.

    Where that is gone, a stage that has begun goes on from its own.
    """
    if not index:
        return None
    before = stages[index - 1]
    last = output / before.name / f"step_{before.total_steps:07d}"
    if last in checkpoints(output / before.name):
        return last
    if own := checkpoints(output / stages[index].name):
        return own[-1]
    raise ConfigError(
        f"stage {before.name} must be complete first, but {last} does not exist; run it with "
        f"--stage {before.name}"
    )


def training_record(
    output: Path, stages: Sequence[Stage], options: Mapping[str, str | int]
) -> dict[str, Any]:
    """Collect what was run: stages with their numbers, seed, wall time and curve; and the machine.

    Args:
        options: options of the command of the last run, True for a flag that was given.
    """
    found = []
    for index, stage in enumerate(stages):
        log = output / stage.name / METRICS_FILE
        metrics = (
            [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        )
        # Some twenty points, the last of them the end.
        shown = metrics[:: -max(1, len(metrics) // 20)][::-1]
        found.append(
            {
                **asdict(stage),
                "seed": _seed_of(index),
                "wall_minutes": round(sum(line["seconds"] for line in metrics) / 60, 1),
                "curve": [
                    {k: line[k] for k in ("step", "loss", "text", "patch_box") if k in line}
                    for line in shown
                ],
            }
        )
    words = [
        f"--{name}" if value is True else f"--{name} {value}"
        for name, value in options.items()
        if value is not False
    ]
    return {
        "command": " ".join(["paligemma train tiny", *words]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stages": found,
    }
