"""What a training of a retriever keeps: an adapter with the head beside it, in PEFT's layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from paligemma.adapt.lora import Adapter
from paligemma.errors import CheckpointError
from paligemma.json_file import read_json
from paligemma.model import PaliGemmaModel
from paligemma.retrieval.checkpoint import HEAD
from paligemma.retrieval.presets import FILE_NAME, Preset
from paligemma.weights.adapter import CONFIG_FILE, WEIGHTS_FILE, save_adapter
from paligemma.whole_file import staging_folder, write_json


def save_retriever(
    adapter: Adapter,
    model: PaliGemmaModel,
    head: nn.Module,
    folder: str | os.PathLike[str],
    *,
    base: str,
    preset: Preset,
    dtype: torch.dtype = torch.float32,
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """Write what `ColPali.from_pretrained` reads beside the base: an adapter and the whole head.

    Args:
        adapter: of the decoder.
        model: the model that it was trained on.
        head: its `weight` and `bias` are kept.
        folder: appears complete or, after an error, not at all; must not exist.
        base: name of the model, as a user would load it.
        preset: prompts that the head was trained with.
        dtype: of the numbers on disk.
        beside: further JSON files of the folder, by name.

    Raises:
        CheckpointError: the folder exists, or the disk refuses.
    """
    target = Path(folder)
    if target.exists():
        raise CheckpointError(
            f"an adapter is written to a new folder, {target} exists; name another"
        )
    try:
        with staging_folder(target) as staging:
            made = save_adapter(adapter, model, staging / "adapter", base=base)
            tensors = load_file(made / WEIGHTS_FILE)
            for leaf, parameter in head.named_parameters():
                tensors[f"base_model.model.{HEAD}.{leaf}"] = parameter.detach().cpu()
            kept = {name: one.to(dtype).contiguous() for name, one in tensors.items()}
            save_file(kept, made / WEIGHTS_FILE, metadata={"format": "pt"})
            described = {**read_json(made / CONFIG_FILE), "modules_to_save": [HEAD]}
            write_json(made / CONFIG_FILE, described)
            write_json(made / FILE_NAME, {"preset": preset.to_json()})
            for name, value in (beside or {}).items():
                write_json(made / name, value)
            os.replace(made, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapter {target} cannot be written ({error})") from error
    return target
