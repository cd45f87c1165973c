"""The Hugging Face safetensors layout, both directions, from one table.

Three spellings of the same names are read: the published one (`language_model.model.`,
`vision_tower.vision_model.`), that of transformers since 4.52 (`model.language_model.`), and that
of its fifth version, which also drops `vision_model.`. Inside this module names are bare:
`language_model.layers.0...`, `vision_tower.encoder...`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError
from paligemma.weights import bitsandbytes
from paligemma.weights.dtypes import cast
from paligemma.weights.safetensors_file import open_safetensors
from paligemma.weights.shapes import compare_shapes, few, parameter_shapes

logger = logging.getLogger(__name__)

Spelling = Literal["published", "current"]
SPELLINGS: tuple[Spelling, ...] = ("published", "current")
# transformers appends rows for `<image>` and pads to a multiple of 64.
ROW_MULTIPLE = 64
_ROWS_AT_ONCE = 1 << 13
_EMBED = "language_model.embed_tokens.weight"
_HEAD = "lm_head.weight"
TABLES = ("text.embed.weight", "text.embed.head")
_PATCH = "vision_tower.embeddings.patch_embedding.weight"
# A key that every spelling has once and no other model is likely to have.
_ANCHOR = "multi_modal_projector.linear.weight"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Buffers of old files, which follow from the config.
_IGNORED = (".position_ids", ".rotary_emb.inv_freq")
# What torch's compiler, FSDP and activation checkpointing put before the names of what they wrap.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_LAYER = r"\.(?:blocks|layers)\.(\d+)\."

_VISION = "vision_tower."
_TEXT = "language_model."
_MODULES: tuple[tuple[str, str], ...] = (
    ("vision.patch_embed.proj", _VISION + "embeddings.patch_embedding"),
    ("vision.blocks.{}.norm1", _VISION + "encoder.layers.{}.layer_norm1"),
    ("vision.blocks.{}.norm2", _VISION + "encoder.layers.{}.layer_norm2"),
    ("vision.blocks.{}.attn.q", _VISION + "encoder.layers.{}.self_attn.q_proj"),
    ("vision.blocks.{}.attn.k", _VISION + "encoder.layers.{}.self_attn.k_proj"),
    ("vision.blocks.{}.attn.v", _VISION + "encoder.layers.{}.self_attn.v_proj"),
    ("vision.blocks.{}.attn.out", _VISION + "encoder.layers.{}.self_attn.out_proj"),
    ("vision.blocks.{}.mlp.fc1", _VISION + "encoder.layers.{}.mlp.fc1"),
    ("vision.blocks.{}.mlp.fc2", _VISION + "encoder.layers.{}.mlp.fc2"),
    ("vision.norm", _VISION + "post_layernorm"),
    ("projector", "multi_modal_projector.linear"),
    ("text.embed", _TEXT + "embed_tokens"),
    ("text.blocks.{}.attn.q", _TEXT + "layers.{}.self_attn.q_proj"),
    ("text.blocks.{}.attn.k", _TEXT + "layers.{}.self_attn.k_proj"),
    ("text.blocks.{}.attn.v", _TEXT + "layers.{}.self_attn.v_proj"),
    ("text.blocks.{}.attn.out", _TEXT + "layers.{}.self_attn.o_proj"),
    ("text.blocks.{}.mlp.gate", _TEXT + "layers.{}.mlp.gate_proj"),
    ("text.blocks.{}.mlp.up", _TEXT + "layers.{}.mlp.up_proj"),
    ("text.blocks.{}.mlp.down", _TEXT + "layers.{}.mlp.down_proj"),
    ("text.blocks.{}.pre_attn_norm", _TEXT + "layers.{}.input_layernorm"),
    ("text.norm", _TEXT + "norm"),
)
# Gemma has no norm after attention; transformers nevertheless calls its second norm so.
_NORMS = {
    1: (("text.blocks.{}.pre_ffw_norm", _TEXT + "layers.{}.post_attention_layernorm"),),
    2: (
        ("text.blocks.{}.post_attn_norm", _TEXT + "layers.{}.post_attention_layernorm"),
        ("text.blocks.{}.pre_ffw_norm", _TEXT + "layers.{}.pre_feedforward_layernorm"),
        ("text.blocks.{}.post_ffw_norm", _TEXT + "layers.{}.post_feedforward_layernorm"),
    ),
}


@lru_cache(maxsize=2)
def _module_names(generation: int) -> dict[str, str]:
    return dict((*_MODULES, *_NORMS[generation]))


def bare_name(torch_name: str, generation: int) -> str:
    """The bare name of a parameter.

    Raises:
        KeyError: not a parameter of the model.
    """
    if torch_name == "vision.pos_embedding":
        return _VISION + "embeddings.position_embedding.weight"
    if torch_name == "text.embed.head":
        return _HEAD
    module, leaf = torch_name.rsplit(".", 1)
    layer = re.search(_LAYER, torch_name)
    if layer:
        module = module.replace(layer[0], ".blocks.{}.", 1)
    target = _module_names(generation)[module]
    return f"{target.format(layer[1] if layer else '')}.{'weight' if leaf == 'scale' else leaf}"


def spell(bare: str, spelling: Spelling) -> str:
    """A bare name as files have it."""
    name = re.sub(r"^vision_tower\.", "vision_tower.vision_model.", bare)
    if spelling == "current":
        return name if bare == _HEAD else "model." + name
    if bare == _HEAD:
        return "language_model." + bare
    return re.sub(r"^language_model\.", "language_model.model.", name)


def unspell(key: str) -> str:
    """The bare name of a key in any spelling."""
    key = _WRAPPERS.sub("", key).removeprefix("model.")
    key = re.sub(r"^language_model\.model\.", "language_model.", key)
    key = re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", key)
    return key.removeprefix("language_model.") if key == "language_model." + _HEAD else key


def file_shape(torch_name: str, config: PaliGemmaConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape a parameter has in the file; only two differ from ours."""
    if torch_name == "vision.patch_embed.proj.weight":
        patch = config.vision.patch_size_px
        return (shape[0], 3, patch, patch)
    if torch_name == "vision.pos_embedding":
        return shape[1:]
    return shape


def to_file(torch_name: str, tensor: Tensor, config: PaliGemmaConfig) -> Tensor:
    """Parameter -> tensor of the file."""
    if torch_name == "vision.patch_embed.proj.weight":
        patch = config.vision.patch_size_px
        return tensor.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
    return tensor[0] if torch_name == "vision.pos_embedding" else tensor


def from_file(torch_name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Tensor of the file -> parameter of the given shape; a view wherever the layouts agree."""
    if torch_name == "vision.patch_embed.proj.weight":
        return tensor.permute(0, 2, 3, 1).reshape(shape)
    if torch_name == "vision.pos_embedding":
        return tensor[None]
    # Rows of the table beyond the vocabulary are padding of transformers.
    return tensor[: shape[0]] if torch_name in TABLES else tensor


def foreign_prefix(keys: Iterable[str]) -> str:
    """What stands before every name of the model, as wrappers of it leave it; "" if nothing does.

    Where the projector's key appears with and without a prefix, or with two, there is no telling.
    """
    found = {key.removesuffix(_ANCHOR) for key in keys if key.endswith(_ANCHOR)}
    return found.pop().removesuffix("model.") if len(found) == 1 else ""


class HFReader:
    """Safetensors files of one checkpoint as torch parameters, memory-mapped.

    Args:
        paths: all shards.
        beside: names of layers that are no part of PaliGemma, which a file may have beside it.

    Raises:
        CheckpointError: a truncated or foreign file, a dtype weights do not have, or one tensor
            under two names.
    """

    def __init__(self, paths: Sequence[Path], beside: Sequence[str] = ()) -> None:
        self.name = str(paths[0] if len(paths) == 1 else paths[0].parent)
        self._stack = ExitStack()
        self._keys: dict[str, str] = {}
        self._shards: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        opened = []
        for path in paths:
            shard = self._stack.enter_context(open_safetensors(path))
            opened += [(path, shard, key) for key in shard.keys()]  # noqa: SIM118 - no mapping
        self._file_of = {key: path for path, _, key in opened}
        shard_of = {key: shard for _, shard, key in opened}
        self._widened, parts = bitsandbytes.find(
            shard_of, lambda key: shard_of[key].get_tensor(key)
        )
        opened = [one for one in opened if one[2] not in parts]
        self._beside = {
            f"{layer}.{leaf}": (shard, key)
            for _, shard, key in opened
            for layer in beside
            for leaf in ("weight", "bias")
            if f".{key}".endswith(f".{layer}.{leaf}")
        }
        taken = {key for _, key in self._beside.values()}
        opened = [one for one in opened if one[2] not in taken]
        if any(".lora_A." in key for key in self._file_of):
            raise CheckpointError(
                f"a model must have its adapter merged into it, {self.name} keeps updates (lora_A, "
                "lora_B) beside the weights; merge them with PEFT's merge_and_unload and save again"
            )
        prefix = foreign_prefix(key for _, _, key in opened)
        for path, shard, key in opened:
            if key.startswith(prefix):
                self._add(path, shard, key, unspell(key.removeprefix(prefix)))
        left = [key for _, _, key in opened if not key.startswith(prefix)]
        if prefix:
            # Around a model with a layer beside it, a prefix is part of the layout.
            logger.log(
                logging.INFO if self._beside else logging.WARNING,
                "%s has the model's tensors under the prefix %.200r, which is left out%s",
                self.name,
                prefix,
                f"; {len(left)} others are not read: {few(left, 3)}" if left else "",
            )
        self._settle_oddities()

    def _add(self, path: Path, shard: Any, key: str, bare: str) -> None:
        if key.endswith(_IGNORED):
            return
        if bare in self._keys:
            raise CheckpointError(
                f"each tensor must appear once, {path} holds {key:.200} beside "
                f"{self._keys[bare]:.200}; "
                "remove one of the files"
            )
        part = shard.get_slice(key)
        if (widened := self._widened.get(key)) is not None:
            shape, dtype = widened.shape, widened.dtype
        elif part.get_dtype() in _DTYPES:
            shape, dtype = tuple(part.get_shape()), _DTYPES[part.get_dtype()]
        else:
            raise CheckpointError(
                f"weights must be float32, float16 or bfloat16, {key:.200} of {path} is "
                f"{part.get_dtype()}; use the unquantised checkpoint"
            )
        self._keys[bare], self._shards[bare], self._paths[bare] = key, shard, path
        self._shapes[bare], self._dtypes[bare] = shape, dtype

    def _settle_oddities(self) -> None:
        """Layouts of other programs that hold the same weights; each is said."""
        if self._widened:
            logger.warning(
                "%s has %d weights in bits of bitsandbytes, which are widened while they are read",
                self.name,
                len(self._widened),
            )
        # A tied table is saved once, under the name that comes first in the alphabet.
        self._table = _HEAD if _HEAD in self._keys and _EMBED not in self._keys else _EMBED
        if self._table == _HEAD:
            logger.warning("%s has the embedding table as %.200s", self.name, self._keys[_HEAD])
        kernel = self._shapes.get(_PATCH, ())
        self._channels_last = len(kernel) == 4 and kernel[3] == 3 != kernel[1]
        if self._channels_last:
            logger.warning("%s has its patch kernel as MLX has it, channels last", self.name)
            self._shapes[_PATCH] = (kernel[0], kernel[3], kernel[1], kernel[2])
        wide = [bare for bare, dtype in self._dtypes.items() if dtype == torch.float64]
        if wide:
            logger.warning("%s holds float64, which is narrowed to float32", self.name)
            self._dtypes |= dict.fromkeys(wide, torch.float32)

    def __enter__(self) -> HFReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def beside(self) -> Mapping[str, Tensor]:
        """Tensors of the layers that the file has beside the model's."""
        return {name: shard.get_tensor(key) for name, (shard, key) in self._beside.items()}

    def table_dtype(self) -> torch.dtype:
        """Dtype of the embedding table, which decides how sqrt(width) is rounded."""
        return self._dtypes[self._table]

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table."""
        return self._shapes[self._table][0]

    @property
    def has_head(self) -> bool:
        """Whether the file has an output head beside the embedding table."""
        return _HEAD in self._keys and self._table != _HEAD

    def num_unnamed(self, config: PaliGemmaConfig) -> int:
        """Rows behind the last token that no padding explains: not to the next multiple of 64."""
        first = config.vocab.size + (config.vocab.image is None)
        padded = -(-first // ROW_MULTIPLE) * ROW_MULTIPLE
        return 0 if self.num_rows in (first - 1, first, padded) else self.num_rows - first

    def dtypes(self) -> set[torch.dtype]:
        return set(self._dtypes.values())

    def problems(self, config: PaliGemmaConfig) -> list[str]:
        """Every missing, unexpected and misshaped key, one sentence each; empty when all fits."""
        wanted = {
            bare_name(name, config.generation): file_shape(name, config, shape)
            for name, shape in parameter_shapes(config).items()
        }
        found = dict(self._shapes)
        if self._table in found:
            found[_EMBED] = found.pop(self._table)
        rows = found.get(_EMBED, (0,))[0]
        # Rows behind the last token are padding; without tokens of a fine-tune, one for `<image>`.
        most = config.vocab.size + ROW_MULTIPLE
        if config.vocab.size < rows and (rows <= most or config.vocab.image is not None):
            wanted[_EMBED] = (rows, config.text.width)
        if _HEAD in found:
            wanted[_HEAD] = wanted[_EMBED]
        spelt = {bare: self._keys.get(bare, spell(bare, "published")) for bare in wanted | found}
        problems = compare_shapes(
            {spelt[bare]: shape for bare, shape in wanted.items()},
            {spelt[bare]: shape for bare, shape in found.items()},
        )
        if not problems and config.text.tied_head and self.num_apart(config.vocab.size):
            problems.append(
                f"value: {self._keys[_HEAD]} differs from {self._keys[_EMBED]}, the model ties them"
            )
        return problems

    def num_apart(self, num_tokens: int) -> int:
        """In how many of the first rows head and embedding differ; 0 where they are one table."""
        if not {_HEAD, _EMBED} <= self._keys.keys():
            return 0
        if self._widened.keys() & {self._keys[_HEAD], self._keys[_EMBED]}:
            return num_tokens  # two tables, one of them rounded
        head, table = (self._shards[k].get_slice(self._keys[k]) for k in (_HEAD, _EMBED))
        if head.get_shape()[1:] != table.get_shape()[1:]:
            return 0
        return sum(
            int((head[rows] != table[rows]).any(dim=1).sum())
            for rows in (
                slice(start, min(start + _ROWS_AT_ONCE, num_tokens))
                for start in range(0, num_tokens, _ROWS_AT_ONCE)
            )
        )

    def get(self, torch_name: str, config: PaliGemmaConfig) -> Tensor:
        """One parameter; memory-mapped unless its layout differs."""
        return self._get(torch_name, config, self._shards[self._bare(torch_name, config)])

    def _bare(self, torch_name: str, config: PaliGemmaConfig) -> str:
        bare = bare_name(torch_name, config.generation)
        return self._table if bare == _EMBED else bare

    def _get(self, torch_name: str, config: PaliGemmaConfig, shard: Any) -> Tensor:
        bare = self._bare(torch_name, config)
        key = self._keys[bare]
        tensor = self._widen(key) if key in self._widened else shard.get_tensor(key)
        if tensor.dtype == torch.float64:
            tensor = cast(tensor, torch.float32, torch_name)
        if bare == _PATCH and self._channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        return from_file(torch_name, tensor, parameter_shapes(config)[torch_name])

    def _widen(self, key: str) -> Tensor:
        def read(part: str) -> Tensor:
            with open_safetensors(self._file_of[part]) as file:
                return file.get_tensor(part)

        return self._widened[key].read(read)

    @property
    def has_widened(self) -> bool:
        """Whether the file has weights in bits of bitsandbytes, which are widened."""
        return bool(self._widened)

    def tensors(self, config: PaliGemmaConfig) -> Iterator[tuple[str, Tensor]]:
        """(torch name, tensor) of every parameter."""
        for name in parameter_shapes(config):
            yield name, self.get(name, config)

    def tensors_in_turn(self, config: PaliGemmaConfig) -> Iterator[tuple[str, Tensor]]:
        """As `tensors`, each mapped by itself: what was read leaves the memory with its tensor."""
        for name in parameter_shapes(config):
            with open_safetensors(self._paths[self._bare(name, config)]) as shard:
                tensor = self._get(name, config, shard)
            yield name, tensor
            del tensor
