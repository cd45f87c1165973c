"""Settings of a PEFT adapter, adapter_config.json: what is computed here, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma.errors import CheckpointError
from paligemma.weights.hub import ADAPTER_FILES

# Fields of what an adapter holds beside updates: rows of the embedding, and whole layers, of which
# it may be the projector by any of its names.
ROWS_FIELD, WHOLE_FIELD = "trainable_token_indices", "modules_to_save"
PROJECTOR_NAME = "multi_modal_projector.linear"
_WHOLE_NAMES = ("linear", "multi_modal_projector", PROJECTOR_NAME)
_MAX_PATTERN = 200  # characters
# Fields that say nothing about the arithmetic, or were used only to begin the training.
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
    "eva_config", "ensure_weight_tying",
}  # fmt: skip
# These begin from other base weights than the ones that are published.
_PLAIN_STARTS = (True, False, "true", "gaussian", "eva", "orthogonal")


def base_of(raw: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Name and revision of the model that an adapter's config states; None where it states none."""
    base, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    if not isinstance(base, str) or not base:
        return None
    return base, revision if isinstance(revision, str) and revision not in ("", "main") else None


def refuse_unknown(raw: Mapping[str, Any], path: Path, beside: Sequence[str] = ()) -> None:
    """Check that an adapter has no setting that changes the arithmetic and is not computed here.

    Args:
        raw: its adapter_config.json.
        path: its folder.
        beside: names of layers outside PaliGemma that it may hold whole.

    Raises:
        CheckpointError: it has; all such settings are named.
    """
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type is {raw.get('peft_type')!r}, not 'LORA'")
    if raw.get("bias", "none") != "none":
        problems.append(f"bias is {raw['bias']!r}, not 'none'")
    if raw.get("init_lora_weights", True) not in _PLAIN_STARTS:
        problems.append(f"init_lora_weights is {raw['init_lora_weights']!r}")
    known = _HARMLESS | {"bias", "init_lora_weights", ROWS_FIELD}
    whole = raw.get(WHOLE_FIELD)
    if isinstance(whole, list) and all(
        isinstance(one, str) and one.removeprefix("model.") in (*_WHOLE_NAMES, *beside)
        for one in whole
    ):
        known.add(WHOLE_FIELD)
    problems += [
        f"{field} is {value!r}" for field, value in raw.items() if value and field not in known
    ]
    numbers = [raw.get("lora_alpha", 8), raw.get("lora_dropout", 0.0)]
    patterns = raw.get("alpha_pattern") or {}
    if isinstance(patterns, dict):
        numbers += patterns.values()
    else:
        problems.append("alpha_pattern is no object")
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        problems.append("alpha or dropout is no number")
    problems += [f"alpha_pattern has {one!r:.80}" for one in patterns if not _is_plain(one)]
    if problems:
        raise CheckpointError(
            "an adapter must be a plain LoRA, rsLoRA or DoRA, which may hold the projector whole, "
            f"in {path / ADAPTER_FILES[0]} {' and '.join(problems)[:300]}; merge it with peft"
        )


def _is_plain(pattern: str) -> bool:
    """Whether a file's pattern is one, and none that takes for ever: no repeated groups."""
    if len(pattern) > _MAX_PATTERN or re.search(r"\)[*+{]", pattern):
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
