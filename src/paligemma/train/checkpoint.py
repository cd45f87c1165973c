"""Training state on disk: safetensors and JSON, written beside its place and then renamed.

A kill at any moment loses no older checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from paligemma.errors import CheckpointError, ConfigError
from paligemma.json_file import read_json
from paligemma.train.distributed import World, world
from paligemma.train.optim import Optimizer
from paligemma.train.sharding import is_sharded, own_rows
from paligemma.train.stored import StoredTensors, save_own, shard_files
from paligemma.weights.hashes import sha256
from paligemma.whole_file import staging_folder, write_json

logger = logging.getLogger(__name__)

# Checkpoints that stay.
KEPT = 2
_PARTS = ("model", "objective", "optimizer")
_NAME = re.compile(r"step_(\d{7})")


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that cannot be read, or is not as it was written."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that an interrupted run needs to continue.

    Attributes:
        objective: the objective, whose parameters are trained beside the model's; may have none.
        optimizer: the optimiser, which holds the moments and the number of updates done.
        keeps_frozen: whether frozen parameters are stored too; a run that can load them anew, such
            as that of an adapter, need not.
    """

    model: nn.Module
    objective: nn.Module
    optimizer: Optimizer
    keeps_frozen: bool = True

    def model_tensors(self) -> dict[str, Tensor]:
        """The tensors of the model that a checkpoint holds."""
        tensors = self.model.state_dict()
        if self.keeps_frozen:
            return tensors
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        return {name: tensor for name, tensor in tensors.items() if name in trained}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a checkpoint of one step holds.

    Attributes:
        parts: tensors by part and name; of a divided model the rows of this process.
        counters: those of the optimiser.
        run: configuration of the run.
        beside: further state of the loop.
        shards: number of processes that write a file each; None where there is one file.
    """

    parts: Mapping[str, Mapping[str, Tensor]]
    counters: Mapping[str, Any]
    run: Mapping[str, Any]
    beside: Mapping[str, Any]
    shards: int | None

    @property
    def step(self) -> int:
        return int(self.counters["steps_done"])


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def take_snapshot(
    state: TrainState,
    meta: Mapping[str, Any],
    beside: Mapping[str, Any] | None = None,
    *,
    copied: bool = True,
) -> Snapshot:
    """What a checkpoint holds now.

    Args:
        meta: configuration of the run, stored as JSON; a run that resumes must have the same.
        beside: further state of the loop, as JSON holds it.
        copied: whether later steps leave it alone: what they may change is copied, to the memory
            of the host. Without that it is written before the next step.
    """
    moments, counters = state.optimizer.export_state()
    parts = {
        "model": state.model_tensors(),
        "objective": state.objective.state_dict(),
        "optimizer": moments,
    }
    frozen = {name for name, p in state.model.named_parameters() if not p.requires_grad}

    def own(part: str, name: str, tensor: Tensor) -> Tensor:
        tensor = own_rows(tensor).detach()
        stays = part == "model" and name in frozen and tensor.device.type == "cpu"
        return tensor if stays or not copied else tensor.to("cpu", copy=True)

    return Snapshot(
        parts={
            part: {name: own(part, name, tensor) for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        },
        counters=counters,
        run=meta,
        beside=deepcopy(dict(beside or {})),
        shards=world().size if is_sharded(state.model) else None,
    )


def save_checkpoint(
    folder: Path,
    state: TrainState,
    meta: Mapping[str, Any],
    *,
    beside: Mapping[str, Any] | None = None,
    keep: int = KEPT,
) -> Path:
    """Take a snapshot and write it, before anything else happens; see both."""
    here = world() if is_sharded(state.model) else World()
    taken = take_snapshot(state, meta, beside, copied=False)
    return write_snapshot(folder, taken, here, keep=keep)


def write_snapshot(folder: Path, taken: Snapshot, here: World, *, keep: int = KEPT) -> Path:
    """Write `folder/step_NNNNNNN` and delete all checkpoints but the newest up to this one.

    Later ones are those that `resume` passed over. It survives a power cut once this returns.

    Args:
        here: the processes that write together; one alone unless the model is divided.
        keep: number of checkpoints that stay.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: it cannot be written; older ones stay.
    """
    target = folder / f"step_{taken.step:07d}"
    try:
        with ExitStack() as stack:
            staging = here.on_first(lambda: stack.enter_context(staging_folder(target)))
            digests = {}
            for name, tensors in taken.parts.items():
                file = shard_files(staging, name, taken.shards)[here.rank]
                save_own(tensors, file)
                _sync(file)
                digests[file.name.removesuffix(".safetensors")] = sha256(file)
            record = {
                "counters": taken.counters,
                "run": taken.run,
                "beside": taken.beside,
                "shards": taken.shards,
                "sha256": dict(here.gathered(list(digests.items()))),
            }

            def publish() -> None:
                write_json(staging / "state.json", record)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(staging, target)
                _sync(folder)

            here.on_first(publish)
        here.on_first(lambda: _tidy(folder, taken.step, keep))
    except (ConfigError, OSError, SafetensorError) as error:
        before = [path.name for path in checkpoints(folder)]
        resumed = f"the run goes on from {before[-1]}" if before else "the run begins anew"
        raise CheckpointError(
            f"a checkpoint needs room and rights in {folder}, it could not be written ({error}); "
            f"make room, and {resumed}"
        ) from error
    return target


def resume(folder: Path, state: TrainState, meta: dict[str, Any]) -> dict[str, Any] | None:
    """Load the newest checkpoint that is whole; one that is damaged is passed over with a warning.

    What a kill left of a save or of a deletion is removed.

    Args:
        meta: configuration of the run that resumes.

    Returns:
        What was stored `beside` it, or None where no checkpoint is whole.

    Raises:
        CheckpointError: it belongs to another model or to a run with another configuration.
    """
    beside = None
    for path in reversed(checkpoints(folder)):
        try:
            beside = load_checkpoint(path, state, meta)
            break
        except DamagedCheckpointError as error:
            logger.warning("%s; the run goes on from the one before", error)
    _tidy(folder, state.optimizer.steps_done)
    return beside


def stored_tensors(path: Path, part: str, shards: int | None) -> StoredTensors:
    """The tensors of a part of a checkpoint: "model", "objective" or "optimizer"."""
    return StoredTensors(shard_files(path, part, shards))


def load_checkpoint(path: Path, state: TrainState, meta: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint into the model, the objective and the optimiser.

    Args:
        meta: configuration of the run that resumes.

    Returns:
        What was stored `beside` it.

    Raises:
        DamagedCheckpointError: the checkpoint is unreadable, or not as it was written.
        CheckpointError: it belongs to another model, or to a run with another configuration.
    """
    try:
        stored = read_json(path / "state.json")
        run, counters, beside = (stored[name] for name in ("run", "counters", "beside"))
        if not all(isinstance(one, dict) for one in (run, counters, beside)):
            raise ValueError("state.json is not as it was written")
        for name, digest in stored["sha256"].items():
            if sha256(path / f"{name}.safetensors") != digest:
                raise ValueError(f"{name}.safetensors is not as it was written")
        parts = {name: stored_tensors(path, name, stored.get("shards")) for name in _PARTS}
        names = {name: part.names() for name, part in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DamagedCheckpointError(
            f"the checkpoint {path} cannot be read ({error}); delete it to start from the one "
            "before"
        ) from error
    if run != meta:
        changed = sorted(key for key in {*run, *meta} if run.get(key) != meta.get(key))
        raise CheckpointError(
            f"a run resumes with the configuration it began with, but {', '.join(changed)} "
            "changed; use another output folder"
        )
    _load(state.model_tensors(), parts["model"], path)
    _load(state.objective.state_dict(), parts["objective"], path)
    moments = {
        name: parts["optimizer"].like(name, state.optimizer.divided_as(name))
        for name in names["optimizer"]
    }
    state.optimizer.import_state(moments, counters)
    return beside


def _tidy(folder: Path, step: int, keep: int = KEPT) -> None:
    """Delete the checkpoints up to a step but the newest of them, and what a kill left of any."""
    left = list(folder.glob(".step_*.*"))
    for old in [path for path in checkpoints(folder) if path.name <= f"step_{step:07d}"][:-keep]:
        # Renamed first: what is half deleted must not look like a checkpoint.
        with suppress(FileNotFoundError):  # by another process of this run
            left.append(old.rename(folder / f".{old.name}.old"))
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@torch.no_grad()
def _load(own: Mapping[str, Tensor], stored: StoredTensors, path: Path) -> None:
    """Copy stored tensors into those of a module, which must be the same ones."""
    names = stored.names()
    problems = [f"missing {name}" for name in sorted(own.keys() - names)]
    problems += [f"unexpected {name}" for name in sorted(names - own.keys())]
    try:
        for name in [] if problems else own:
            tensor = stored.like(name, own[name])
            if tensor.shape != own[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
                )
            own[name].copy_(tensor)
    except ValueError as error:
        problems = [str(error)]
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} belongs to another model: {'; '.join(problems[:10])}"
        )
