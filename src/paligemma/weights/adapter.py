"""Adapters on disk, in PEFT's layout: adapter_config.json beside adapter_model.safetensors.

PEFT loads what is written here, and what PEFT wrote is read, whichever spelling of transformers'
names it has. Settings that change the arithmetic and are not computed here are refused by name.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from paligemma.adapt.lora import (
    EMBEDDING,
    PARTS,
    Adapter,
    LoraConfig,
    LoraUpdate,
    base_layer,
    layer_names,
)
from paligemma.adapt.token_rows import TOKEN_KINDS, TokenRows, ids_of
from paligemma.adapt.whole_layers import whole_layer
from paligemma.errors import CheckpointError, PaliGemmaError
from paligemma.model import PaliGemmaModel
from paligemma.vocab import Vocab
from paligemma.weights.adapter_config import (
    PROJECTOR_NAME,
    ROWS_FIELD,
    WHOLE_FIELD,
    base_of,
)
from paligemma.weights.adapter_tensors import (
    CONFIG_FILE,
    LEAVES,
    PREFIX,
    ROWS_LEAF,
    WEIGHTS_FILE,
    lora_update,
    read_adapter,
    split_key,
)
from paligemma.weights.catalog import resolve
from paligemma.weights.hashes import require_hub_bytes
from paligemma.weights.hf import bare_name, spell
from paligemma.weights.hf_config import read_json
from paligemma.weights.hub import ADAPTER_FILES, download
from paligemma.weights.model_files import AdapterInPlaceError, Checkpoint
from paligemma.whole_file import staging_folder, write_json

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
# Rows of the embedding; a head that is tied to it has none of its own.
_TABLE = "language_model.embed_tokens"
# The layer that an adapter may hold whole.
_PROJECTOR, _WHOLE_LEAVES = "projector", ("weight", "bias")
# SigLIP's pooling head, which PaliGemma does not use; adapters by suffix reach it all the same.
_UNUSED = "vision_tower.head."


def save_adapter(
    adapter: Adapter,
    model: PaliGemmaModel,
    folder: str | os.PathLike[str],
    *,
    base: str,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Write an adapter so that PEFT and `load_adapter` read it.

    Args:
        adapter: the adapter.
        model: the model that it was trained on, which names the layers.
        folder: appears complete or, after an error, not at all; must not exist.
        base: name of the model, as a user would load it.
        extra_files: further text files of the folder, name -> content.

    Raises:
        CheckpointError: the folder exists, or the disk refuses.
    """
    target = Path(folder)
    if target.exists():
        raise CheckpointError(
            f"an adapter is written to a new folder, {target} exists; name another"
        )
    generation = model.config.generation
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.updates.items():
        module = _peft_name(name, generation)
        tensors[f"{module}.lora_A.weight"] = update.down
        tensors[f"{module}.lora_B.weight"] = update.up
        if update.magnitude is not None:
            tensors[f"{module}.lora_magnitude_vector"] = update.magnitude
    if adapter.token_rows is not None:
        table = _peft_name(EMBEDDING, generation)
        tensors[f"{table}.{ROWS_LEAF}"] = adapter.token_rows.rows
    for name, layer in adapter.layers.items():
        module = _peft_name(name, generation)
        tensors |= {f"{module}.{leaf}": one for leaf, one in layer.named_parameters()}
    config = adapter.config
    described = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised,
        "use_dora": config.dora,
        "bias": "none",
        # Whole names, so that the tower's layers of equal suffix stay as they are.
        "target_modules": sorted(
            _peft_name(name, generation).removeprefix(f"{PREFIX}model.") for name in adapter.updates
        ),
        ROWS_FIELD: None
        if adapter.token_rows is None
        else {"embed_tokens": adapter.token_rows.ids.tolist()},
        WHOLE_FIELD: [PROJECTOR_NAME] if adapter.layers else None,
        "inference_mode": True,
        "task_type": None,
    }
    try:
        with staging_folder(target) as staging:
            contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            save_file(contiguous, staging / WEIGHTS_FILE, metadata={"format": "pt"})
            write_json(staging / CONFIG_FILE, described)
            for name, text in (extra_files or {}).items():
                (staging / name).write_text(text, encoding="utf-8")
            os.replace(staging, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapter {target} cannot be written ({error})") from error
    return target


def adapter_folder(place: str | os.PathLike[str]) -> Path:
    """The folder of an adapter: the place itself, the folder `adapter` of a training run, or the
    copy here of an adapter of the hub, `owner/name` or `owner/name@revision`.

    Raises:
        CheckpointError: none of these holds one.
        AccessError, ModelNotFoundError, MissingExtraError: as in `hub.download`.
    """
    path = Path(place).expanduser()
    for folder in (path, path / "adapter"):
        if os.path.isfile(folder / CONFIG_FILE):  # also of an impossible name
            return folder
    of_hub = _HUB_ID.fullmatch(str(place))
    # A place in an existing folder is a path that is misspelt.
    if of_hub and not path.parent.exists():
        folder = download(of_hub[1], of_hub[2], ask=True, files=ADAPTER_FILES)
        if os.path.isfile(folder / CONFIG_FILE):
            require_hub_bytes([folder / name for name in ADAPTER_FILES])
            return folder
    raise CheckpointError(
        f"an adapter is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or a finished run of "
        "`paligemma train` that holds one, or the hub's owner/name of one, got "
        f"{str(place)!r:.200}; check the path"
    )


def resolve_base(
    source: str | os.PathLike[str], revision: str | None, *, may_be_adapter: bool
) -> tuple[Checkpoint, Path | None]:
    """The files of a model; of an adapter in its place, those of its base, and its folder.

    Raises:
        CheckpointError: an adapter that may not be there, or whose base is not named or not found.
        PaliGemmaError: as `catalog.resolve`.
    """
    try:
        return resolve(source, revision=revision), None
    except AdapterInPlaceError as error:
        found, stated = error, None
        if may_be_adapter:
            stated = base_of(read_json(error.folder / CONFIG_FILE))
    if stated is None:
        raise found
    base, revision = stated
    try:
        checkpoint = resolve(base, revision=revision)
    except PaliGemmaError as error:
        raise CheckpointError(
            f"{found.folder} is an adapter of {base!r:.200}, which cannot be loaded; name its "
            f"model, and this folder as adapter ({str(error)[:300]})"
        ) from error
    logger.warning("%s is an adapter of %.200s, which is loaded under it", found.folder, base)
    return checkpoint, found.folder


def base_notice(folder: Path, model: str) -> str | None:
    """A sentence where an adapter's config names another base than the model that it is for."""
    stated = base_of(read_json(folder / CONFIG_FILE))
    if stated is None:
        return None
    base, _ = stated
    names = [Path(name.rstrip("/")).name.lower() for name in (base, model)]
    if names[0] == names[1]:
        return None
    return (
        f"the adapter {folder} was made for {base!r:.200} and answers on {model!r:.200}; unless "
        "both are one model, load its own base"
    )


def load_adapter(
    folder: str | os.PathLike[str], model: PaliGemmaModel, *, beside: Sequence[str] = ()
) -> Adapter:
    """Read an adapter that `save_adapter` or PEFT wrote.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        model: the model that it will be attached to.
        beside: names of layers that are no part of the model, whose tensors `load_beside` reads.

    Raises:
        CheckpointError: unreadable files, an adapter for another model, or settings that are not
            computed here.
    """
    path = Path(folder)
    raw, tensors = read_adapter(path, beside)
    of_others = [key for key in tensors if split_key(key)[0] in beside]
    for key in of_others:
        del tensors[key]
    layers = {
        bare_name(f"{name}.weight", model.config.generation).removesuffix(".weight"): name
        for name in layer_names(model, tuple(PARTS))
    }
    found: dict[str, dict[str, Tensor]] = {}
    rows, whole = None, {}
    unknown = []
    for key, tensor in tensors.items():
        module, leaf = split_key(key)
        if module.startswith(_UNUSED):
            logger.warning("%s changes SigLIP's pooling head, which PaliGemma does not use", path)
        elif leaf in LEAVES and module in layers:
            found.setdefault(module, {})[LEAVES[leaf]] = tensor.float()
        elif leaf == ROWS_LEAF and module == _TABLE:
            rows = _token_rows(path, raw, tensor, model)
        elif module == PROJECTOR_NAME and leaf in _WHOLE_LEAVES and raw.get(WHOLE_FIELD):
            whole[leaf] = tensor
        else:
            unknown.append(key)
    if unknown or not (found or of_others):
        shown = ", ".join(unknown[:5]) or "nothing"
        near = difflib.get_close_matches(split_key(unknown[0])[0], layers, n=1) if unknown else []
        raise CheckpointError(
            f"an adapter holds updates of linear layers, {path} holds {shown:.400}"
            f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}"
            f"{f' (the nearest layer is {near[0]})' if near else ''}; merge whole layers "
            "into the model with the program that wrote them"
        )
    updates = {}
    for module in layers:
        if module in found:
            name = layers[module]
            updates[name] = lora_update(path, raw, module, model.get_submodule(name), found[module])
    if any(one.removeprefix("model.") not in beside for one in raw.get(WHOLE_FIELD) or ()):
        _require_projector(path, whole, model, is_updated=_PROJECTOR in updates)
    return Adapter(
        config=_config(raw, updates, rows, model.config.vocab),
        updates=updates,
        token_rows=rows,
        layers={_PROJECTOR: whole_layer(whole["weight"], whole["bias"])} if whole else {},
    )


def _peft_name(layer: str, generation: int) -> str:
    bare = bare_name(f"{layer}.weight", generation).removesuffix(".weight")
    return PREFIX + spell(bare, "current").replace("vision_tower.vision_model.", "vision_tower.")


def _require_projector(
    path: Path, whole: Mapping[str, Tensor], model: PaliGemmaModel, *, is_updated: bool
) -> None:
    """Check the projector that an adapter holds whole."""
    layer = base_layer(model, _PROJECTOR)
    wanted = {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    found = {leaf: tuple(one.shape) for leaf, one in whole.items()}
    if found != wanted or is_updated:
        has = "an update of it too" if found == wanted else found or "none"
        raise CheckpointError(
            f"an adapter with {WHOLE_FIELD} holds the projector of its model, {wanted}, and no "
            f"update of it, {path} has {has!s:.200}; load its own base, or merge it with peft"
        )


def _token_rows(
    path: Path, raw: Mapping[str, Any], rows: Tensor, model: PaliGemmaModel
) -> TokenRows:
    """The trained rows of the embedding, whose ids the config lists."""
    stated = raw.get(ROWS_FIELD)
    if isinstance(stated, dict):
        named = [ids for name, ids in stated.items() if f".{name}".endswith(".embed_tokens")]
        stated = named[0] if len(stated) == len(named) == 1 else None
    vocab, width = model.config.vocab, model.config.text.width
    if (
        not isinstance(stated, list)
        or not stated
        or not all(type(one) is int and 0 <= one < vocab.size for one in stated)
        or len(set(stated)) != len(stated)
    ):
        raise CheckpointError(
            f"an adapter lists the ids of its token rows, below {vocab.size} and each once, as "
            f"{ROWS_FIELD} of embed_tokens, {path / CONFIG_FILE} has "
            f"{reprlib.repr(raw.get(ROWS_FIELD))}; take both files from one training"
        )
    if rows.shape != (len(stated), width):
        raise CheckpointError(
            f"an adapter fits the model it was trained for, {path} has token rows of size "
            f"{tuple(rows.shape)}, its config and this model need {(len(stated), width)}; load "
            f"its own base, {raw.get('base_model_name_or_path')!r}"
        )
    ids = torch.tensor(stated)
    embed = base_layer(model, EMBEDDING)
    start = None if embed.device.type == "meta" else embed(ids.to(embed.device)).detach().cpu()
    return TokenRows(ids, rows.float(), start)


def _config(
    raw: Mapping[str, Any],
    updates: Mapping[str, LoraUpdate],
    rows: TokenRows | None,
    vocab: Vocab,
) -> LoraConfig:
    parts = [
        part
        for part, pattern in PARTS.items()
        if any(re.fullmatch(pattern, name) for name in updates)
    ]
    ids = set() if rows is None else set(rows.ids.tolist())
    kinds = TOKEN_KINDS if vocab.has_objects else ()
    return LoraConfig(
        rank=max((len(update.down) for update in updates.values()), default=1),
        alpha=float(raw.get("lora_alpha", 8)),
        parts=tuple(parts) or ("decoder",),
        dropout=float(raw.get("lora_dropout") or 0.0),
        rank_stabilised=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        token_rows=tuple(kind for kind in kinds if ids.issuperset(ids_of(kind, vocab))),
    )
