"""Merging an adapter into its model, with a proof that nothing was lost."""

from __future__ import annotations

from pathlib import Path

import torch

from paligemma.adapt.lora import MAX_DIFFERENCE, attach, merge
from paligemma.errors import CheckpointError, ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.tuning.folder import RECIPE
from paligemma.tuning.keeping import side_files
from paligemma.tuning.probing import moved, probe
from paligemma.weights.adapter import CONFIG_FILE, adapter_folder, load_adapter
from paligemma.weights.dtypes import dtype_name
from paligemma.weights.hf_config import read_json
from paligemma.weights.load import OpenCheckpoint
from paligemma.weights.save import require_no_checkpoint, save_model
from paligemma.whole_file import require_writable


def base_of(adapter: str | Path) -> str:
    """The model that an adapter's config names.

    Raises:
        ConfigError: it names none.
    """
    path = adapter_folder(adapter) / CONFIG_FILE
    name = read_json(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{path} names no base model; name it with --model")
    return name


def merge_adapter(
    adapter: str | Path, model: str | None, output: str | Path, *, dtype: str | None = None
) -> float:
    """Write a model with an adapter in its weights.

    Args:
        adapter: folder of the adapter, or of the run that made it.
        model: its base; None takes the one that its config names.
        output: folder of the merged model.
        dtype: of the written weights; None is the base's.

    Returns:
        The largest difference of float32 logits between the merged and the adapted model, as a
        share of the largest logit.

    Raises:
        CheckpointError: the two differ by more than `MAX_DIFFERENCE`, or the folder holds a model.
        ConfigError: the folder cannot be made.
    """
    base = model or base_of(adapter)
    beside = side_files(base)
    require_no_checkpoint(Path(output), tuple(beside))
    require_writable(Path(output).absolute().parent)
    with OpenCheckpoint(base) as opened:
        opened.checkpoint.require_plain("merging")
        stored = dtype or dtype_name(opened.table_dtype)
        merged = opened.load(dtype="float32")
    attach(merged, load_adapter(adapter_folder(adapter), merged))
    before = probe(merged)
    merge(merged)
    difference = moved(before, probe(merged))
    if not difference <= MAX_DIFFERENCE:
        raise CheckpointError(
            f"a merged model must answer like the adapted one, logits of {adapter} on {base} "
            f"differ by {difference:.1e}, more than {MAX_DIFFERENCE:.0e}; keep the adapter apart"
        )
    save_model(merged, output, dtype=stored, extra_files=beside)
    return difference


def describe(adapter: str | Path, model: str | None = None) -> list[str]:
    """What an adapter changes, in lines for people."""
    folder = adapter_folder(adapter)
    base = model or base_of(adapter)
    with OpenCheckpoint(base) as opened, torch.device("meta"):
        model_of_sizes = PaliGemmaModel(opened.config)
    loaded = load_adapter(folder, model_of_sizes)
    config = loaded.config
    kind = "DoRA" if config.dora else "rsLoRA" if config.rank_stabilised else "LoRA"
    rows = loaded.token_rows
    quant = None
    if (folder.parent / RECIPE).is_file():
        quant = read_json(folder.parent / RECIPE).get("quant")
    named = " and ".join(f"<{name}>" for name in config.token_rows) or "given ids"
    return [
        f"{folder}: {kind} of rank {config.rank}, alpha {config.alpha:g}, on {base}",
        f"changes {len(loaded.updates)} layers of {', '.join(config.parts)}",
        *([] if rows is None else [f"changes {len(rows.ids)} token rows, of {named}"]),
        *(f"replaces {name} whole" for name in loaded.layers),
        *([] if quant is None else [f"was trained beside layers quantised to {quant!s:.100}"]),
        f"{loaded.num_parameters:,} parameters, "
        f"{'active' if loaded.is_active else 'without effect: every update is zero'}",
    ]
