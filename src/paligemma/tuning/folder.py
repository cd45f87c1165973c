"""The folder of a fine-tuning: whose it is, and what lies in it.

folder/recipe.json     what was run
folder/train/          checkpoints, metrics.jsonl, validation.jsonl; the same call goes on from here
folder/answers/        answers to held-out rows: before, of the best look, of the newest
folder/replay.jsonl    with --replay: what the model answered before, see `replay`
folder/best/           the adapter or the model of the best look
folder/adapter/        what was learnt, in PEFT's layout; or folder/model/ without an adapter
folder/report.json     figures before and after
folder/report.html     the same as a page, with curves and examples
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from paligemma.errors import CheckpointError, ConfigError
from paligemma.jobs.run_folder import differences
from paligemma.json_file import read_json
from paligemma.train.checkpoint import checkpoints
from paligemma.train.loop import METRICS_FILE
from paligemma.whole_file import write_json

RECIPE, TRAIN, REPORT = "recipe.json", "train", "report.json"
PAGE = "report.html"
ADAPTER, MODEL, BEST = "adapter", "model", "best"
VALIDATION, ANSWERS, REPLAY = "validation.jsonl", "answers", "replay.jsonl"
# Every recipe that `begin` writes has them.
_ALWAYS = {"weights", "task", "rows"}


def require_own(folder: Path) -> None:
    """Check, before any work, that a run in a folder would replace nothing of the user's.

    Raises:
        ConfigError: a name that a run writes is taken, and no run began there.
    """
    if stored_recipe(folder) is not None:
        return
    names = (RECIPE, TRAIN, ANSWERS, BEST, ADAPTER, MODEL, REPORT, PAGE)
    taken = [name for name in names if os.path.lexists(folder / name)]
    if taken:
        raise ConfigError(
            f"a fine-tuning replaces nothing that it did not write, {folder} holds "
            f"{', '.join(taken)} and no {RECIPE} of a run; move that away or name another folder"
        )


def begin(folder: Path, described: dict[str, Any]) -> None:
    """Record what is run, or go on with the same run.

    What ended before its first checkpoint has learnt nothing, and another run takes its place:
    whoever corrects an option, or makes a batch smaller, needs no other folder.

    Args:
        described: everything that changes the result, as JSON holds it.

    Raises:
        CheckpointError: a run with another configuration began in the folder.
        ConfigError: the folder cannot be written.
    """
    require_own(folder)
    stored, asked = stored_recipe(folder), json.loads(json.dumps(described))
    if stored is not None and stored != asked and _has_learnt_nothing(folder):
        _remove_looks(folder)
        stored = None
    if stored is None:
        write_json(folder / RECIPE, asked)
    elif stored != asked:
        changed = differences(stored, asked)[:500]
        raise CheckpointError(
            f"{folder} holds a run with another configuration: {changed}; repeat its options to "
            "go on with it, or name another folder"
        )


def _has_learnt_nothing(folder: Path) -> bool:
    kept = any(os.path.lexists(folder / name) for name in (ADAPTER, MODEL, REPORT))
    return not kept and not checkpoints(folder / TRAIN)


def _remove_looks(folder: Path) -> None:
    """Remove what a run writes before its first checkpoint, and nothing else."""
    looks = [folder / REPLAY, *(folder / ANSWERS).glob("step_*.jsonl")]
    looks += [folder / TRAIN / name for name in (METRICS_FILE, VALIDATION)]
    for path in looks:
        path.unlink(missing_ok=True)
    for path in (folder / BEST).glob("step_*"):
        shutil.rmtree(path)


def recipe_of_model(model: Path) -> dict[str, Any] | None:
    """The recipe of the run that left a folder of a model, if one did."""
    return stored_recipe(model.parent) if model.name == MODEL and model.is_dir() else None


def stored_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe of the run that began in a folder, if one did."""
    path = folder / RECIPE
    if not path.is_file() or path.is_symlink():
        return None
    try:
        stored = read_json(path)
    except ValueError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{path} must be readable to know whose run it is ({error.strerror}); change its "
            "rights or name another folder"
        ) from error
    return stored if isinstance(stored, dict) and stored.keys() >= _ALWAYS else None
