"""ColPali's checkpoints: where each layout has the layer that gives the vectors, and its preset.

adapter                  lora_A and lora_B of `custom_text_proj`, whose base has the layer; or,
                         of an adapter made here, the layer whole
base, merged             `custom_text_proj` beside PaliGemma's tensors
transformers (-hf)       `embedding_proj_layer`, and PaliGemma under `vlm.`
sentence-transformers    the module `Dense` that modules.json lists
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma import json_file
from paligemma.adapt.lora import AdaptedLinear, put_layer
from paligemma.adapt.whole_layers import ReplacedLinear, whole_layer
from paligemma.errors import CheckpointError, ConfigError
from paligemma.kernels.linear import Linear
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.loading import LoadOptions, Pretrained, load_pretrained
from paligemma.pipeline.options import chosen
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.retrieval.presets import FILE_NAME, PRESETS, Preset, find_preset, preset_of_name
from paligemma.weights.adapter_tensors import load_beside, read_adapter
from paligemma.weights.catalog import EMBEDDED, embedded_folder
from paligemma.weights.fingerprint import of_tensors
from paligemma.weights.hf_config import read_json
from paligemma.weights.safetensors_file import open_safetensors
from paligemma.weights.save import save_model
from paligemma.weights.wrapper import Wrapper
from paligemma.whole_file import write_json

# Names of the layer: of colpali-engine and of transformers.
HEAD, HF_HEAD = "custom_text_proj", "embedding_proj_layer"
HEADS = (HEAD, HF_HEAD)
EMBEDDED_ADAPTER = "retrieval"  # folder in that of the embedded model
_MODULES_NAME = "modules.json"
_PROCESSOR_NAME = "processor_config.json"
_MAX_MODULES = 32
_MAX_DIM = 1 << 14


@dataclass(frozen=True, kw_only=True)
class LoadedColPali:
    """The parts of `ColPali`, loaded."""

    pg: PaliGemma
    head: Linear
    preset: Preset
    fingerprint: str


def load_colpali(
    source: str | os.PathLike[str], preset: Preset | str | None, keywords: Mapping[str, Any]
) -> LoadedColPali:
    """Load the parts of a model; arguments and errors as `ColPali.from_pretrained`.

    Args:
        keywords: fields of `LoadOptions`.
    """
    if isinstance(preset, str):
        preset = find_preset(preset)
    elif preset is not None and not isinstance(preset, Preset):
        raise ConfigError(f"the preset must be a name or a Preset, got {type(preset).__name__}")
    options = chosen(LoadOptions, keywords)
    if os.fspath(source) == EMBEDDED and options.adapter is None:
        options = replace(options, adapter=embedded_folder() / EMBEDDED_ADAPTER)
    loaded = load_pretrained(source, options, beside=HEADS)
    head = find_head(loaded)
    preset = preset or _stated_preset(loaded, str(source))
    tensors: list[tuple[str, Tensor]] = [
        (f"head.{name}", one) for name, one in head.named_parameters()
    ]
    if loaded.adapter_folder is not None:
        _, of_adapter = read_adapter(loaded.adapter_folder, HEADS)
        tensors += sorted((key, one) for key, one in of_adapter.items() if HEAD not in key)
    pg = PaliGemma(
        loaded.model,
        loaded.processor,
        mask_codec=loaded.mask_codec,
        settings=loaded.settings,
        adapters=loaded.adapters,
    )
    fingerprint = f"{loaded.fingerprint}-{of_tensors(tensors)}"
    return LoadedColPali(pg=pg, head=head, preset=preset, fingerprint=fingerprint)


def find_head(loaded: Pretrained) -> Linear:
    """The layer that gives the vectors, in float32, with an adapter's update in it.

    Raises:
        CheckpointError: there is none, or it does not fit the model.
    """
    found = [name for name in HEADS if f"{name}.weight" in loaded.beside]
    if len(found) > 1:
        raise CheckpointError(
            f"a ColPali has one projection, {loaded.folder} has {' and '.join(found)}; remove one"
        )
    head = _linear(loaded.beside, found[0], loaded.folder) if found else None
    folders = [one for one in (loaded.adapter_folder, loaded.folder) if one is not None]
    if head is None:
        head = next((one for one in map(_dense, folders) if one is not None), None)
    if loaded.adapter_folder is not None:
        part = load_beside(loaded.adapter_folder, HEADS, head)
        if part is not None and head is not None and not found:
            raise CheckpointError(
                f"a ColPali has one projection, {loaded.adapter_folder} has one among the modules "
                f"of {_MODULES_NAME} and another in its adapter; remove one"
            )
        if isinstance(part, Linear):
            head = part
        elif part is not None and head is not None:
            head = whole_layer(part.merged(head.dense()).detach(), head.bias)
    if head is None:
        raise CheckpointError(
            f"a ColPali has a linear layer {HEAD} or {HF_HEAD} that gives its vectors, "
            f"{' and '.join(map(str, folders))} has none; name a ColPali checkpoint, or train one "
            "on this model"
        )
    width = loaded.model.config.text.width
    if head.in_features != width or not 1 <= head.out_features <= _MAX_DIM:
        raise CheckpointError(
            f"the projection of a ColPali reads the model's width {width} and gives 1 to "
            f"{_MAX_DIM} numbers, that of {folders[0]} has size {tuple(head.weight.shape)}; load "
            "the base that it was trained on"
        )
    if not all(bool(one.isfinite().all()) for one in head.parameters()):
        raise CheckpointError(
            f"the projection of a ColPali must be finite, that of {folders[0]} has NaN or "
            "infinity; take an earlier checkpoint"
        )
    return head.float()


def _linear(tensors: Mapping[str, Tensor], name: str, folder: Path) -> Linear:
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weight is None or weight.ndim != 2 or bias is None or bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"the projection of a ColPali has weight and bias, {name} of {folder} has not, or in "
            "sizes that differ; fetch it again"
        )
    return whole_layer(weight.float(), bias.float())


def _dense(folder: Path) -> Linear | None:
    """The layer of a folder of sentence-transformers."""
    listed = folder / _MODULES_NAME
    if not listed.is_file():
        return None
    try:
        modules = json_file.read_json(listed)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{listed} must be readable JSON, it is not ({error})") from error
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise CheckpointError(f"{listed} must be a list of modules; fetch it again")
    paths = [
        str(one.get("path"))
        for one in modules[:_MAX_MODULES]
        if str(one.get("type", "")).endswith(".Dense")
    ]
    if len(paths) != 1 or Path(paths[0]).name != paths[0]:
        return None
    place = folder / paths[0]
    _require_linear(place)
    with open_safetensors(place / "model.safetensors") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if unused := tensors.keys() - {"linear.weight", "linear.bias"}:
        raise CheckpointError(
            f"the projection of a ColPali has weight and bias, {place} holds "
            f"{', '.join(sorted(unused))[:200]} too; take a checkpoint without it"
        )
    if "linear.weight" in tensors and "linear.bias" not in tensors:
        tensors["linear.bias"] = torch.zeros(len(tensors["linear.weight"]))
    return _linear(tensors, "linear", place)


def _require_linear(place: Path) -> None:
    """Refuse a `Dense` that computes more than a product and a sum; by itself it ends in tanh.

    Source: sentence-transformers 6.2, base/modules/dense.py.
    """
    path = place / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    activation = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if activation != "Identity" or config.get("use_residual"):
        raise CheckpointError(
            "the projection of a ColPali is linear, that of "
            f"{place} has {'a residual' if activation == 'Identity' else activation[:80]}; take "
            "another checkpoint"
        )


def _stated_preset(loaded: Pretrained, source: str) -> Preset:
    """What the folder states, or what belongs to a published name.

    Raises:
        ConfigError: neither.
    """
    for folder in (loaded.adapter_folder, loaded.folder):
        if folder is not None and (folder / FILE_NAME).is_file():
            stated = read_json(folder / FILE_NAME).get("preset")
            return (
                Preset.from_json(stated) if isinstance(stated, dict) else find_preset(str(stated))
            )
    for name in (source.rstrip("/"), str(loaded.adapter_folder or ""), str(loaded.folder)):
        if (found := preset_of_name(name)) is not None:
            return found
    if f"{HF_HEAD}.weight" in loaded.beside:
        path = loaded.folder / _PROCESSOR_NAME
        raw = read_json(path) if path.is_file() else {}
        hf = PRESETS["hf"]
        return replace(
            hf,
            query_prefix=raw.get("query_prefix", hf.query_prefix),
            page_prompt=raw.get("visual_prompt_prefix", hf.page_prompt),
        )
    raise ConfigError(
        f"a ColPali of no published name needs the preset it was trained with, {source:.200} has "
        f"no {FILE_NAME}; name one of {', '.join(PRESETS)} as preset"
    )


def save_colpali(pg: PaliGemma, head: Linear, preset: Preset, folder: Path, **options: Any) -> Path:
    """Write a model as `ColPali.save` does."""
    wrapper = Wrapper(
        prefix="vlm.",
        field="vlm_config",
        config={
            "architectures": ["ColPaliForRetrieval"],
            "model_type": "colpali",
            "embedding_dim": head.out_features,
        },
        # In float32 whatever the dtype of the rest, as it is computed.
        tensors={f"{HF_HEAD}.{leaf}": one.detach() for leaf, one in head.named_parameters()},
    )
    with tempfile.TemporaryDirectory() as beside, _without_adapter(pg.model) as values:
        pg.processor.tokenizer.save(beside)
        (Path(beside) / FILE_NAME).write_text(preset_file(preset), encoding="utf-8")
        prompts = {"query_prefix": preset.query_prefix, "visual_prompt_prefix": preset.page_prompt}
        write_json(Path(beside) / _PROCESSOR_NAME, prompts)
        return save_model(
            pg.model,
            folder,
            extra_files=sorted(Path(beside).iterdir()),
            values=values,
            wrapper=wrapper,
            **options,
        )


@contextmanager
def _without_adapter(model: PaliGemmaModel) -> Iterator[Any]:
    """The model's own layers in their places for a while, and a function that gives a parameter
    with the adapter in it."""
    attached = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear | ReplacedLinear)
    }

    def value(name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        module = attached.get(owner)
        plain = model.get_parameter(name)
        if isinstance(module, ReplacedLinear):
            return getattr(module.own, leaf)
        if isinstance(module, AdaptedLinear) and leaf == "weight":
            return module.update.merged(module.base.dense()).to(plain.dtype)
        return plain

    for name, module in attached.items():
        put_layer(model, name, module.base)
    try:
        yield value
    finally:
        for name, module in attached.items():
            put_layer(model, name, module)


def preset_file(preset: Preset) -> str:
    """Content of the file that states a model's preset."""
    return json.dumps({"preset": preset.to_json()}, indent=2) + "\n"
