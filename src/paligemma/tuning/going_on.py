"""Three ways to begin where a run ended: go on with it, make it longer, start from its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from paligemma.adapt.lora import Adapter, LoraConfig
from paligemma.errors import CheckpointError, ConfigError
from paligemma.jobs.run_folder import differences
from paligemma.json_file import read_json
from paligemma.model import PaliGemmaModel
from paligemma.train.checkpoint import checkpoints
from paligemma.tuning.folder import ADAPTER, MODEL, RECIPE, REPORT, TRAIN, stored_recipe
from paligemma.tuning.keeping import take_back
from paligemma.weights.adapter import CONFIG_FILE, adapter_folder, load_adapter
from paligemma.whole_file import write_json

# What may differ between a run and the longer one that it becomes.
_LONGER = ("steps", "epochs", "eval_every", "patience")


def require_begun(folder: Path, how: str) -> None:
    """Check that a run began in a folder.

    Raises:
        ConfigError: none did.
    """
    if stored_recipe(folder) is None:
        raise ConfigError(
            f"--{how} goes on with a run, and none began in {folder}; check --output, or leave "
            f"--{how} out to begin one"
        )


def become_longer(folder: Path, described: dict[str, Any], num_steps: int) -> None:
    """Let a finished run become a longer one: with its optimiser, on the longer schedule.

    From the update at which it stood, the learning rate is that of a run which was so long from
    the start. The adapter that it ended with stays as `adapter_NNNNNNN`. Nothing happens to a run
    that is of this length already.

    Args:
        described: what is run now, as recipe.json holds it.
        num_steps: updates of the longer run.

    Raises:
        ConfigError: no run began there.
        CheckpointError: the run is unfinished, not shorter, or differs in more than its length.
    """
    require_begun(folder, "extend")
    stored, asked = stored_recipe(folder), json.loads(json.dumps(described))
    if stored is None or stored == asked:
        return
    fixed = [{k: v for k, v in one.items() if k not in _LONGER} for one in (stored, asked)]
    if fixed[0] != fixed[1]:
        raise CheckpointError(
            f"a run is extended in its length alone, and {differences(*fixed)[:500]}; repeat its "
            "options, or begin a new run with --init-from"
        )
    done = _steps_of_finished(folder)
    if num_steps <= done:
        raise CheckpointError(
            f"a run is extended to more updates than its {done:,}, got {num_steps:,}; raise "
            "--steps or --epochs"
        )
    for path in checkpoints(folder / TRAIN):
        state = read_json(path / "state.json")
        state["run"] = {**state["run"], **asked, "total_steps": num_steps}
        write_json(path / "state.json", state)
    if (folder / ADAPTER).exists():
        os.replace(folder / ADAPTER, folder / f"{ADAPTER}_{done:07d}")
    write_json(folder / RECIPE, asked)


def _steps_of_finished(folder: Path) -> int:
    try:
        report = read_json(folder / REPORT)
        return int(report["steps_done"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"a finished run is extended, the one in {folder} has not ended; repeat its own "
            "command until it has"
        ) from error


@torch.no_grad()
def start_from(place: str | Path, model: PaliGemmaModel, lora: LoraConfig | None) -> Adapter | None:
    """Give a model the weights that another run ended with.

    Args:
        place: folder of a run, an adapter or a model.
        lora: the adapter that is to be trained; None where the model itself is.

    Returns:
        The adapter to go on with, or None.

    Raises:
        ConfigError: an adapter where the whole model is trained, the reverse, or one of another
            shape than is asked for.
        CheckpointError: the weights cannot be read, or are of another model.
    """
    found = Path(place)
    is_adapter = any((folder / CONFIG_FILE).is_file() for folder in (found, found / ADAPTER))
    if is_adapter and lora is None:
        raise ConfigError(
            f"the whole model is trained from weights of a model, {place} holds an adapter; merge "
            "it first (paligemma adapter merge), or train with --lora"
        )
    if not is_adapter and lora is not None:
        raise ConfigError(
            f"an adapter is trained from an adapter, {place} holds none; name a model with --model"
        )
    if is_adapter:
        return load_adapter(adapter_folder(found), model)
    take_back(model, None, found / MODEL if (found / MODEL).is_dir() else found)
    return None
