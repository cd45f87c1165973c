"""What a fine-tuning keeps: an adapter or a model, read back before it counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from paligemma.adapt.lora import MAX_DIFFERENCE, Adapter, merge_difference
from paligemma.errors import CheckpointError, ConfigError
from paligemma.json_file import read_json
from paligemma.model import PaliGemmaModel
from paligemma.train.checkpoint import checkpoints, stored_tensors
from paligemma.train.distributed import world
from paligemma.train.optim import AVERAGE
from paligemma.train.sharding import is_sharded
from paligemma.tuning.folder import ADAPTER, MODEL, TRAIN
from paligemma.weights.adapter import load_adapter, save_adapter
from paligemma.weights.catalog import resolve
from paligemma.weights.load import OpenCheckpoint
from paligemma.weights.save import SIDE_FILES, save_model

logger = logging.getLogger(__name__)


def keep(model: PaliGemmaModel, adapter: Adapter | None, folder: Path, *, base: str) -> Path:
    """Write what was learnt, read it back, and refuse it unless it is the same.

    Args:
        adapter: what was trained; None keeps the whole model.
        folder: folder of the run.
        base: name of the model that the run began with.

    Returns:
        The folder of the adapter or of the model.

    Raises:
        ConfigError: the folder holds another adapter.
        CheckpointError: it cannot be written, or it would answer otherwise once it is merged.
    """
    if adapter is None:
        values = _last_values(folder / TRAIN) if is_sharded(model) else None
        return write(model, adapter, folder / MODEL, base=base, values=values)
    difference = merge_difference(model)
    if not difference <= MAX_DIFFERENCE:
        raise CheckpointError(
            "an adapter that is merged must answer like the adapted model, a layer of this one "
            f"differs by {difference:.1e} of its largest output, more than {MAX_DIFFERENCE:.0e}; "
            f"train with a lower learning rate, what was learnt stays in {folder / TRAIN}"
        )
    target = folder / ADAPTER
    if not world().on_first(target.exists):
        write(model, adapter, target, base=base)
    again = load_adapter(target, model)
    written, read = dict(adapter.named_parameters()), dict(again.named_parameters())
    if written.keys() != read.keys() or not all(
        torch.equal(written[name].cpu(), read[name].cpu()) for name in written
    ):
        raise ConfigError(
            f"{target} holds another adapter than this run learnt; remove it or name another "
            "output folder"
        )
    if not adapter.is_active:
        logger.warning("the adapter changes nothing: train longer, or with a higher learning rate")
    return target


def write(
    model: PaliGemmaModel,
    adapter: Adapter | None,
    target: Path,
    *,
    base: str,
    values: Callable[[str], Tensor] | None = None,
) -> Path:
    """Write an adapter to a new folder, or a model to one that may hold another state of it.

    Args:
        values: where the values of a divided model are read, one parameter at a time.
    """
    if adapter is None:
        save = partial(save_model, extra_files=side_files(base), overwrite=True, values=values)
        return world().on_first(lambda: save(model, target))
    return world().on_first(lambda: save_adapter(adapter, model, target, base=base))


def _last_values(folder: Path) -> Callable[[str], Tensor]:
    """The values of the last checkpoint of a run, or their averages where they were kept."""
    path = checkpoints(folder)[-1]
    shards = read_json(path / "state.json").get("shards")
    model, state = (stored_tensors(path, part, shards) for part in ("model", "optimizer"))
    averaged = state.names()

    def value(name: str) -> Tensor:
        average = f"{name}.{AVERAGE}"
        return state.get(average) if average in averaged else model.get(name)

    return value


@torch.no_grad()
def take_back(model: PaliGemmaModel, adapter: Adapter | None, source: Path) -> None:
    """Give a model, or its adapter, the values that `write` wrote.

    Raises:
        CheckpointError: they are gone, or damaged.
    """
    if adapter is None:
        with OpenCheckpoint(str(source)) as opened:
            opened.checkpoint.require_plain("a fine-tuning")
            read = dict(opened.load(dtype="float32").named_parameters())
        own = dict(model.named_parameters())
    else:
        read, own = (
            dict(load_adapter(source, model).named_parameters()),
            dict(adapter.named_parameters()),
        )
    for name, parameter in own.items():
        parameter.copy_(read[name])


def side_files(base: str) -> list[Path]:
    """What belongs to a model beside its weights: tokenizer, mask codec, calibration."""
    folder = resolve(base).folder
    return [folder / name for name in SIDE_FILES if (folder / name).is_file()]
