"""Saving models and converting checkpoints; a folder appears whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paligemma.adapt.quant import PACKED, Quant
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError, ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.outputs.calibration import FILE_NAME as CALIBRATION
from paligemma.processing.added_tokens import ADDED_NAME
from paligemma.weights import hf
from paligemma.weights.big_vision import BigVisionReader, write_npz
from paligemma.weights.catalog import resolve
from paligemma.weights.dtypes import cast, parse_dtype
from paligemma.weights.hashes import require_hub_bytes
from paligemma.weights.hf_config import BITS, hf_config, rounded_embed_scale, stored_embed_scale
from paligemma.weights.load import open_weights, read_config, require_fit
from paligemma.weights.model_files import (
    CODECS,
    PACKED_NAME,
    SINGLE_NAME,
    TOKENIZERS,
    UNFINISHED_NAME,
    Layout,
    npz_names,
)
from paligemma.weights.npz import NpzWriter
from paligemma.weights.packed_file import PackedReader, packed_field, write_packed
from paligemma.weights.safetensors_file import INDEX_NAME, SafetensorsWriter
from paligemma.weights.shapes import few, parameter_shapes
from paligemma.weights.wrapper import Wrapper
from paligemma.whole_file import staging_folder, whole_file

logger = logging.getLogger(__name__)

NPZ_NAME = "model.npz"
MAX_SHARD_BYTES = 5_000_000_000
# What belongs to a model beside its weights.
SIDE_FILES = (
    *TOKENIZERS,
    "tokenizer_config.json",
    ADDED_NAME,
    "special_tokens_map.json",
    "preprocessor_config.json",
    *CODECS,
    CALIBRATION,
)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a checkpoint is written; the options of `save_model`, checked."""

    layout: Layout
    dtype: torch.dtype
    spelling: hf.Spelling
    max_shard_bytes: int
    pad_rows: bool
    fused_qkv: bool | None = None
    quant: Quant | None = None
    wrapper: Wrapper | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("hf", "npz"):
            raise ConfigError(f"the layout must be hf or npz, got {self.layout!r}")
        if self.spelling not in hf.SPELLINGS:
            raise ConfigError(
                f"the spelling must be one of {', '.join(hf.SPELLINGS)}, got {self.spelling!r}"
            )
        if not isinstance(self.max_shard_bytes, int) or self.max_shard_bytes <= 0:
            raise ConfigError(
                f"max_shard_bytes must be a positive whole number, got {self.max_shard_bytes}"
            )
        usual = self.spelling == "published" and self.max_shard_bytes == MAX_SHARD_BYTES
        if self.layout == "npz" and (self.pad_rows or not usual):
            raise ConfigError(
                "spelling, padded rows and the size of shards are of the layout hf, got them with "
                "npz; leave them out"
            )


@dataclass(frozen=True, kw_only=True)
class _Parameters:
    """Where parameters come from: in any order by name, and in the source's own order."""

    get: Callable[[str], Tensor]
    stream: Callable[[], Iterable[tuple[str, Tensor]]]


def save_model(
    model: PaliGemmaModel,
    folder: str | os.PathLike[str],
    *,
    layout: Layout = "hf",
    dtype: torch.dtype | str | None = None,
    spelling: hf.Spelling = "published",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    pad_rows: bool = False,
    extra_files: Iterable[Path] = (),
    overwrite: bool = False,
    values: Callable[[str], Tensor] | None = None,
    wrapper: Wrapper | None = None,
) -> Path:
    """Write a model with its config.json.

    Args:
        folder: appears complete or, after an error, not at all.
        layout: "hf" (safetensors, which transformers reads too) or "npz" (big_vision).
        dtype: of the file; None keeps that of the model.
        spelling: of the names in safetensors: "published" is read by every version of transformers,
            "current" is what versions since 4.52 write.
        max_shard_bytes: size at which another safetensors file begins.
        pad_rows: append rows to the embedding table up to the next multiple of 64, as published
            (257,216); each is the mean of all rows, which never wins.
        extra_files: copied beside the weights, e.g. the tokenizer.
        overwrite: whether a checkpoint in the folder may be replaced: its weights, config.json, and
            of `extra_files`, tokenizers and mask codecs those that the new ones stand for. All
            other files stay; weights under other names are never removed, but refused.
        values: the value of a parameter by its name, where the model does not hold it whole.
        wrapper: the model that this one is a part of; of the layout hf.

    Raises:
        CheckpointError: the model is adapted or quantised, a weight overflows, the folder holds
            what would be replaced, or the disk refuses.
    """
    plan = _Plan(
        layout=layout,
        dtype=parse_dtype(dtype or model.dtype),
        spelling=spelling,
        max_shard_bytes=max_shard_bytes,
        pad_rows=pad_rows,
        wrapper=wrapper,
    )
    parameters = dict(model.named_parameters())
    expected = parameter_shapes(model.config)
    odd = sorted(parameters.keys() ^ expected.keys())
    if odd:
        raise CheckpointError(
            f"only a plain model can be saved, this one differs in {len(odd)} parameters, "
            f"for instance {odd[0]}; merge its adapters or save it before quantising"
        )
    get = values or parameters.__getitem__
    source = _Parameters(get=get, stream=lambda: ((name, get(name)) for name in parameters))
    extra_files = tuple(extra_files)
    with _atomic_folder(Path(folder), extra_files, overwrite) as staging:
        _write(staging, model.config, source, plan, model.text.embed_scale)
    return Path(folder)


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    layout: Layout = "hf",
    dtype: torch.dtype | str | None = None,
    spelling: hf.Spelling = "published",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    pad_rows: bool = False,
    quant: str | None = None,
    overwrite: bool = False,
    revision: str | None = None,
) -> Path:
    """Rewrite a checkpoint in another layout or dtype, one tensor in memory at a time.

    A config.json keeps its own soft-caps and window; tokenizer, mask codec and calibration are
    copied. Arguments are those of `save_model`; `source` and `revision` those of `load_model`.

    Args:
        quant: pack the weights, as `Quant.parse` reads it; no other layout and dtype goes with it.

    Raises:
        CheckpointError: the source does not fit its config, a weight overflows, the folder holds
            what would be replaced, or the disk refuses.
        ConfigError: the source is packed, or options do not go together.
    """
    packing = None
    if quant is not None:
        packing = _packing(
            quant,
            layout=layout,
            dtype=dtype,
            spelling=spelling,
            max_shard_bytes=max_shard_bytes,
            pad_rows=pad_rows,
        )
    checkpoint = resolve(source, revision=revision)
    checkpoint.require_plain("a conversion")
    require_hub_bytes(checkpoint.files)
    with open_weights(checkpoint) as weights:
        assert not isinstance(weights, PackedReader)
        config, raw = read_config(checkpoint, weights, "transformers")
        require_fit(weights, config)
        table_dtype = weights.table_dtype()
        if isinstance(weights, BigVisionReader):
            parameters = _Parameters(
                get=_in_order(weights.tensors(config)), stream=lambda: weights.tensors(config)
            )
        else:
            parameters = _Parameters(
                get=lambda name: weights.get(name, config),
                stream=lambda: weights.tensors_in_turn(config),
            )
        plan = _Plan(
            layout=layout,
            dtype=torch.float32 if packing else parse_dtype(dtype or table_dtype),
            spelling=spelling,
            max_shard_bytes=max_shard_bytes,
            pad_rows=pad_rows,
            fused_qkv=weights.fused if isinstance(weights, BigVisionReader) else None,
            quant=packing,
        )
        scale = stored_embed_scale(raw) or rounded_embed_scale(config, table_dtype)
        beside = tuple(checkpoint.folder / name for name in SIDE_FILES)
        extra_files = tuple(path for path in beside if path.is_file())
        with _atomic_folder(Path(folder), extra_files, overwrite) as staging:
            _write(staging, config, parameters, plan, scale)
    return Path(folder)


def _packing(quant: str, **others: object) -> Quant:
    """How a checkpoint is packed, if that goes together with the other options."""
    found = Quant.parse(quant)
    if not found.is_packed:
        raise ConfigError(
            f"a model is saved packed as {', '.join(PACKED)}, not as {found.kind}, which is made "
            "while loading; convert without quant, and load with it"
        )
    usual = {"layout": "hf", "spelling": "published", "max_shard_bytes": MAX_SHARD_BYTES}
    named = [name for name, value in others.items() if value and value != usual.get(name)]
    if named:
        raise ConfigError(
            f"packed weights are one file of a layout of their own, got {', '.join(named)} beside "
            f"quant {quant:.100}; leave either out"
        )
    return found


def _in_order(stream: Iterator[tuple[str, Tensor]]) -> Callable[[str], Tensor]:
    """Random access that is used in the stream's order only, as `write_npz` does."""

    def get(name: str) -> Tensor:
        found, tensor = next(stream)
        if found != name:
            raise ValueError(f"expected {name}, the stream has {found}")
        return tensor

    return get


def _write(
    folder: Path, config: PaliGemmaConfig, source: _Parameters, plan: _Plan, embed_scale: float
) -> None:
    num_rows = config.vocab.size
    field = {}
    if plan.quant is not None:
        field = {BITS: packed_field(plan.quant)}
        write_packed(folder, config, plan.quant, source.stream())
    elif plan.layout == "npz":
        if not config.text.tied_head:
            raise CheckpointError(
                "an npz of big_vision has one table for embedding and head, this model's head "
                "differs; write the layout hf"
            )
        with NpzWriter(folder / NPZ_NAME) as npz:
            write_npz(npz, config, source.get, dtype=plan.dtype, fused=plan.fused_qkv)
    else:
        if plan.pad_rows:
            num_rows = (num_rows // hf.ROW_MULTIPLE + 1) * hf.ROW_MULTIPLE
        _write_safetensors(folder, config, source, plan, num_rows)
    body = hf_config(config, dtype=plan.dtype, num_rows=num_rows, embed_scale=embed_scale)
    body |= field
    if plan.wrapper is not None:
        body = {**plan.wrapper.config, plan.wrapper.field: body}
    (folder / "config.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(
    folder: Path, config: PaliGemmaConfig, source: _Parameters, plan: _Plan, num_rows: int
) -> None:
    prefix = plan.wrapper.prefix if plan.wrapper else ""
    beside = plan.wrapper.tensors if plan.wrapper else {}
    keys = {
        name: prefix + hf.spell(hf.bare_name(name, config.generation), plan.spelling)
        for name in parameter_shapes(config)
    }
    shapes = {
        keys[name]: hf.file_shape(name, config, shape)
        for name, shape in parameter_shapes(config).items()
    }
    shapes |= {keys[name]: (num_rows, config.text.width) for name in hf.TABLES if name in keys}
    shapes |= {key: tuple(tensor.shape) for key, tensor in beside.items()}
    with SafetensorsWriter(
        folder,
        shapes,
        dtype=plan.dtype,
        max_shard_bytes=plan.max_shard_bytes,
        other_dtypes={key: tensor.dtype for key, tensor in beside.items()},
    ) as writer:
        for name, tensor in source.stream():
            tensor = cast(hf.to_file(name, tensor.detach(), config), plan.dtype, name)
            if name in hf.TABLES and num_rows > tensor.shape[0]:
                mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
                tensor = torch.cat((tensor, mean.expand(num_rows - tensor.shape[0], -1)))
            writer.write(keys[name], tensor)
        for key, tensor in beside.items():
            writer.write(key, tensor)


@contextmanager
def _atomic_folder(folder: Path, extra_files: tuple[Path, ...], overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside the target that takes its place when the block succeeds.

    Args:
        folder: the target.
        extra_files: copied into it too.
        overwrite: whether `_replaced` files of the target may go.
    """
    try:
        old = require_no_checkpoint(folder, extra_files, overwrite)
        with staging_folder(folder) as staging:
            yield staging
            for path in extra_files:
                _copy(path, staging)
            if folder.exists():
                _replace_files(staging, folder, old)
            else:
                staging.replace(folder)
    except OSError as error:
        raise CheckpointError(
            f"{few([str(folder)])} must be writable with room for the weights, it is not "
            f"({error.strerror or error}); choose another place"
        ) from error


def _copy(path: Path, folder: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(
            f"what belongs to a model must be readable, {path} is not ({error.strerror}); change "
            "its rights or move it away"
        ) from error
    shutil.copyfile(path, folder / path.name)


def require_no_checkpoint(
    folder: Path, extra_files: tuple[Path, ...], overwrite: bool = False
) -> list[Path]:
    """The files of the target that a checkpoint there replaces, if they may be replaced.

    Raises:
        CheckpointError: they may not, or the target is a file or holds weights under other names.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"a checkpoint is written to a folder, {folder} is a file")
    foreign = sorted(npz_names(folder) - {NPZ_NAME})
    if foreign:
        raise CheckpointError(
            f"a checkpoint is written to a folder without other weights, {folder} holds "
            f"{few(foreign)}; choose another folder or move them away"
        )
    old = _replaced(folder, extra_files)
    if old and not overwrite:
        raise CheckpointError(
            f"a checkpoint is written to a folder without one, {folder} holds "
            f"{few([path.name for path in old])}; choose another folder or allow overwriting"
        )
    return old


def _replace_files(staging: Path, folder: Path, old: list[Path]) -> None:
    """Rename one by one, under a mark by which a kill in between is known and refused."""
    mark = folder / UNFINISHED_NAME
    new = {path.name for path in staging.iterdir()}
    with whole_file(mark, sync=True) as partial:
        partial.write_text("This folder was being overwritten; overwrite it again.\n")

    def finish() -> None:
        for path in sorted(staging.iterdir()):
            path.replace(folder / path.name)
        for path in old:
            if path.name not in new:
                path.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)

    try:
        finish()
    except BaseException:
        # Interrupted or refused: what is left is soon done, and half of it is worth nothing.
        finish()
        raise


def _replaced(folder: Path, extra_files: tuple[Path, ...]) -> list[Path]:
    """Files of a folder that a checkpoint written there, with these files beside it, stands for."""
    shards = (*folder.glob("model-*-of-*.safetensors"), *folder.glob(NPZ_NAME + ".part*"))
    names = [SINGLE_NAME, PACKED_NAME, INDEX_NAME, NPZ_NAME, *sorted(path.name for path in shards)]
    names += ["config.json", *(path.name for path in extra_files)]
    for kind in (TOKENIZERS, CODECS):
        # One that stayed could be taken instead of the new one.
        names += kind if {*names} & {*kind} else ()
    return [folder / name for name in dict.fromkeys(names) if (folder / name).exists()]
