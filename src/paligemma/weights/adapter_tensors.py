"""Tensors of an adapter in PEFT's layout, under the names of layers; updates made of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from paligemma.adapt.lora import LoraUpdate
from paligemma.adapt.whole_layers import whole_layer
from paligemma.errors import CheckpointError
from paligemma.kernels.linear import Linear
from paligemma.weights.adapter_config import WHOLE_FIELD, refuse_unknown
from paligemma.weights.hf import unspell
from paligemma.weights.hf_config import read_json
from paligemma.weights.hub import ADAPTER_FILES

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILES
PREFIX = "base_model.model."
# Rows of the embedding; a head that is tied to it has none of its own.
ROWS_LEAF = "token_adapter.trainable_tokens_delta"
LEAVES = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}


def read_adapter(path: Path, beside: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter's config and its tensors, both checked.

    Args:
        path: its folder.
        beside: names of layers outside PaliGemma that it may hold whole.

    Raises:
        CheckpointError: unreadable files, NaN, or settings that are not computed here.
    """
    raw = read_json(path / CONFIG_FILE)
    refuse_unknown(raw, path, beside)
    try:
        with safe_open(path / WEIGHTS_FILE, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"an adapter's weights lie in {WEIGHTS_FILE}, {path} has none that is readable "
            f"({str(error)[:200]}); of .bin files make one with peft's save_pretrained"
        ) from error
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"the numbers of an adapter must be finite, {key:.200} of {path} has NaN or "
                "infinity; take an earlier checkpoint, or train with a lower learning rate"
            )
    return raw, tensors


def split_key(key: str) -> tuple[str, str]:
    """A key of the file as (bare name of the module, leaf)."""
    # Around PaliGemma, ColPali has "vlm." in transformers and one more "model." elsewhere.
    key = key.removeprefix(PREFIX).removeprefix("vlm.").replace("model.model.", "model.", 1)
    key = re.sub(rf"\.{WHOLE_FIELD}(\.default)?(?=\.)", "", key)
    module, leaf = key, ""
    for known in (*LEAVES, ROWS_LEAF, "weight", "bias"):
        if key.endswith("." + known):
            module, leaf = key[: -len(known) - 1], known
            break
    return unspell(module), leaf


def lora_update(
    path: Path,
    raw: Mapping[str, Any],
    module: str,
    layer: Any,
    parts: Mapping[str, Tensor],
) -> LoraUpdate:
    """The update of one layer.

    Args:
        path: the adapter's folder.
        raw: its config.
        module: name of the layer in the file.
        layer: the layer.
        parts: the tensors by `LEAVES`.

    Raises:
        CheckpointError: a tensor is missing, or does not fit the layer or the config.
    """
    down, up, magnitude = (parts.get(leaf) for leaf in ("down", "up", "magnitude"))
    wanted = (layer.out_features, layer.in_features)
    if down is None or up is None or down.ndim != 2 or up.ndim != 2:
        raise CheckpointError(f"an update has lora_A and lora_B, {path} lacks one of {module}")
    if (len(up), down.shape[1]) != wanted or up.shape[1] != len(down):
        raise CheckpointError(
            f"an adapter fits the model it was trained for, {module} of {path} changes a layer of "
            f"size {(len(up), down.shape[1])}, this model's has {wanted}; load its own base, "
            f"{raw.get('base_model_name_or_path')!r}"
        )
    rank = raw.get("r")
    if rank is not None and rank != len(down) and not raw.get("rank_pattern"):
        raise CheckpointError(
            f"an adapter's config states its rank, {module} of {path} has {len(down)}, r is "
            f"{rank!r:.40}; take both files from one training"
        )
    if bool(raw.get("use_dora")) != (magnitude is not None):
        raise CheckpointError(
            f"a DoRA adapter has a magnitude of every layer, check {module} of {path}"
        )
    alpha = _alpha(raw, module)
    root = math.sqrt(len(down)) if raw.get("use_rslora") else len(down)
    return LoraUpdate(down, up, scale=alpha / root, magnitude=magnitude)


def _alpha(raw: Mapping[str, Any], module: str) -> float:
    """alpha of one layer: of the first pattern that its name ends in, else that of all."""
    patterns = raw.get("alpha_pattern") or {}
    for pattern, alpha in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return float(alpha)
    return float(raw.get("lora_alpha", 8))


def load_beside(
    folder: str | os.PathLike[str], names: Sequence[str], layer: Linear | None
) -> LoraUpdate | Linear | None:
    """What an adapter has for a layer that is no part of PaliGemma.

    Args:
        folder: as for `load_adapter`.
        names: what the layer may be called in the file.
        layer: the layer that an update fits; None where there is none.

    Returns:
        An update of the layer, or the layer whole, or None.

    Raises:
        CheckpointError: as `load_adapter`, or an update without the layer that it changes.
    """
    path = Path(folder)
    raw, tensors = read_adapter(path, names)
    found = {split_key(key): one for key, one in tensors.items()}
    parts = {leaf: one for (name, leaf), one in found.items() if name in names}
    name = next((name for name, _ in found if name in names), "")
    if parts.keys() & LEAVES.keys():
        if layer is None or not parts.keys() <= LEAVES.keys():
            has = ", ".join(sorted(parts))
            raise CheckpointError(
                f"an update changes a layer that its base has, {name} of {path} has {has:.200} and "
                "its base none; load the base that it was trained on"
            )
        updates = {LEAVES[leaf]: tensor.float() for leaf, tensor in parts.items()}
        return lora_update(path, raw, name, layer, updates)
    if not parts:
        return None
    weight, bias = parts.get("weight"), parts.get("bias")
    if weight is None or weight.ndim != 2 or bias is None or bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"a layer that an adapter holds whole has weight and bias, {name} of {path} has "
            f"{ {leaf: tuple(one.shape) for leaf, one in parts.items()}!s:.200}; take both files "
            "from one training"
        )
    return whole_layer(weight, bias)
