"""big_vision's npz layout, both directions, from one table.

Axes in the file (L layers first, P parts that are separate modules in torch): D width, N heads,
K key/value heads, H head dim, M hidden units, I image tokens, V vocabulary, Y X C patch pixels and
channels, W decoder width, O one.
Source: big_vision models/vit.py, models/ppp/gemma.py, models/proj/paligemma/paligemma.py.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from paligemma.config import (
    TEXT_CONFIGS,
    PaliGemmaConfig,
    TextConfig,
    VisionConfig,
)
from paligemma.errors import CheckpointError
from paligemma.vocab import GEMMA_VOCAB
from paligemma.weights.dtypes import cast
from paligemma.weights.npz import NpzReader, NpzWriter
from paligemma.weights.shapes import compare_shapes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One array of the file.

    Attributes:
        key: path without the leading "params/".
        axes: axes in the file; L and P lead and are unstacked.
        order: axes of each torch tensor, in einops' notation.
        names: torch names, one a part; `{}` is the layer.
    """

    key: str
    axes: str
    order: str
    names: tuple[str, ...]

    @property
    def stacked(self) -> bool:
        return self.axes.startswith("L")

    def shape(self, config: PaliGemmaConfig) -> tuple[int, ...]:
        """Shape in the file."""
        sizes = _sizes(self.key, config)
        return tuple(len(self.names) if a == "P" else sizes[a] for a in self.axes.split())

    def to_torch(self, piece: Tensor) -> Tensor:
        """One layer's part in the file's axes -> the torch parameter."""
        inner = [a for a in self.axes.split() if a not in "LP"]
        groups = _groups(self.order)
        size = dict(zip(inner, piece.shape, strict=True))
        permuted = piece.permute([inner.index(a) for group in groups for a in group])
        return permuted.reshape([math.prod(size[a] for a in group) for group in groups])

    def from_torch(self, parameter: Tensor, config: PaliGemmaConfig) -> Tensor:
        """The inverse of `to_torch`."""
        inner = [a for a in self.axes.split() if a not in "LP"]
        flat = [a for group in _groups(self.order) for a in group]
        sizes = _sizes(self.key, config)
        return parameter.reshape([sizes[a] for a in flat]).permute([flat.index(a) for a in inner])


def _groups(order: str) -> list[list[str]]:
    """ "(N H) D" -> [[N, H], [D]]."""
    return [(group or single).split() for group, single in re.findall(r"\((.*?)\)|(\S+)", order)]


def _sizes(key: str, config: PaliGemmaConfig) -> dict[str, int]:
    if key.startswith("img/"):
        v = config.vision
        patch = v.patch_size_px
        return {
            "L": v.depth,
            "D": v.width,
            "N": v.num_heads,
            "H": v.width // v.num_heads,
            "M": v.mlp_dim,
            "I": v.num_tokens,
            "W": config.text.width,
            "Y": patch,
            "X": patch,
            "C": 3,
            "O": 1,
        }
    t = config.text
    return {
        "L": t.depth,
        "D": t.width,
        "N": t.num_heads,
        "K": t.num_kv_heads,
        "H": t.head_dim,
        "M": t.mlp_dim,
        "V": config.vocab.size,
    }


_BLOCK = "img/Transformer/encoderblock/"
_ATTN = _BLOCK + "MultiHeadDotProductAttention_0/"
_MLP = _BLOCK + "MlpBlock_0/"
_V = "vision.blocks.{}."
_T = "text.blocks.{}."


def _norm(key: str, name: str, axes: str) -> tuple[Row, ...]:
    return (
        Row(key + "/scale", axes, "D", (name + ".weight",)),
        Row(key + "/bias", axes, "D", (name + ".bias",)),
    )


def _vision_qkv(key: str, name: str) -> tuple[Row, ...]:
    return (
        Row(f"{_ATTN}{key}/kernel", "L D N H", "(N H) D", (f"{_V}attn.{name}.weight",)),
        Row(f"{_ATTN}{key}/bias", "L N H", "(N H)", (f"{_V}attn.{name}.bias",)),
    )


_TABLE: tuple[Row, ...] = (
    Row("img/embedding/kernel", "Y X C D", "D (Y X C)", ("vision.patch_embed.proj.weight",)),
    Row("img/embedding/bias", "D", "D", ("vision.patch_embed.proj.bias",)),
    Row("img/pos_embedding", "O I D", "O I D", ("vision.pos_embedding",)),
    *_norm(_BLOCK + "LayerNorm_0", _V + "norm1", "L D"),
    *_norm(_BLOCK + "LayerNorm_1", _V + "norm2", "L D"),
    *_vision_qkv("query", "q"),
    *_vision_qkv("key", "k"),
    *_vision_qkv("value", "v"),
    Row(_ATTN + "out/kernel", "L N H D", "D (N H)", (_V + "attn.out.weight",)),
    Row(_ATTN + "out/bias", "L D", "D", (_V + "attn.out.bias",)),
    Row(_MLP + "Dense_0/kernel", "L D M", "M D", (_V + "mlp.fc1.weight",)),
    Row(_MLP + "Dense_0/bias", "L M", "M", (_V + "mlp.fc1.bias",)),
    Row(_MLP + "Dense_1/kernel", "L M D", "D M", (_V + "mlp.fc2.weight",)),
    Row(_MLP + "Dense_1/bias", "L D", "D", (_V + "mlp.fc2.bias",)),
    *_norm("img/Transformer/encoder_norm", "vision.norm", "D"),
    Row("img/head/kernel", "D W", "W D", ("projector.weight",)),
    Row("img/head/bias", "W", "W", ("projector.bias",)),
    Row("llm/embedder/input_embedding", "V D", "V D", ("text.embed.weight",)),
    Row("llm/layers/attn/q_einsum/w", "L N D H", "(N H) D", (_T + "attn.q.weight",)),
    Row(
        "llm/layers/attn/kv_einsum/w",
        "L P K D H",
        "(K H) D",
        (_T + "attn.k.weight", _T + "attn.v.weight"),
    ),
    Row("llm/layers/attn/attn_vec_einsum/w", "L N H D", "D (N H)", (_T + "attn.out.weight",)),
    Row(
        "llm/layers/mlp/gating_einsum",
        "L P D M",
        "M D",
        (_T + "mlp.gate.weight", _T + "mlp.up.weight"),
    ),
    Row("llm/layers/mlp/linear", "L M D", "D M", (_T + "mlp.down.weight",)),
    Row("llm/layers/pre_attention_norm/scale", "L D", "D", (_T + "pre_attn_norm.scale",)),
    Row("llm/layers/post_attention_norm/scale", "L D", "D", (_T + "post_attn_norm.scale",)),
    Row("llm/layers/pre_ffw_norm/scale", "L D", "D", (_T + "pre_ffw_norm.scale",)),
    Row("llm/layers/post_ffw_norm/scale", "L D", "D", (_T + "post_ffw_norm.scale",)),
    Row("llm/final_norm/scale", "D", "D", ("text.norm.scale",)),
)
# With as many key/value heads as query heads the original keeps one array for all three.
_FUSED_QKV = Row(
    "llm/layers/attn/qkv_einsum/w",
    "L P N D H",
    "(N H) D",
    (_T + "attn.q.weight", _T + "attn.k.weight", _T + "attn.v.weight"),
)
_SPLIT_QKV = ("llm/layers/attn/q_einsum/w", "llm/layers/attn/kv_einsum/w")


def rows(config: PaliGemmaConfig, *, fused: bool | None = None) -> tuple[Row, ...]:
    """The arrays a checkpoint of this config has.

    Args:
        fused: whether query, key and value share one array; None follows the original, which
            fuses them when every query head has its own key head.
    """
    if fused is None:
        fused = config.text.num_heads == config.text.num_kv_heads
    table: list[Row] = []
    for row in _TABLE:
        if "/post_" in row.key and not config.text.post_norms:
            continue
        if fused and row.key in _SPLIT_QKV:
            if row.key == _SPLIT_QKV[0]:
                table.append(_FUSED_QKV)
            continue
        table.append(row)
    return tuple(table)


@lru_cache(maxsize=1)
def _key_of_name() -> dict[str, str]:
    return {name: row.key for row in _TABLE for name in row.names}


def big_vision_name(torch_name: str) -> str:
    """The original's path of a parameter, e.g. "llm/layers/attn/q_einsum/w"; all layers share one.

    Raises:
        KeyError: not a parameter of the model.
    """
    return _key_of_name()[re.sub(r"\.blocks\.\d+\.", ".blocks.{}.", torch_name)]


class BigVisionReader:
    """A checkpoint file of the original as torch parameters.

    Args:
        npz: the open file; keys may start with "params/", "opt/target/" or neither.
    """

    def __init__(self, npz: NpzReader) -> None:
        self._npz = npz
        prefix = next(
            (p for p in ("params/", "opt/target/") if any(k.startswith(p) for k in npz.arrays)), ""
        )
        self._prefix = prefix
        self.arrays = {
            key.removeprefix(prefix): info
            for key, info in npz.arrays.items()
            if key.startswith(prefix)
        }
        ignored = len(npz.arrays) - len(self.arrays)
        if ignored:
            logger.warning("%s: %d arrays outside %r are not weights", npz.name, ignored, prefix)
        self.fused = _FUSED_QKV.key in self.arrays

    def __enter__(self) -> BigVisionReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._npz.__exit__(*error)

    @property
    def name(self) -> str:
        return self._npz.name

    def dtypes(self) -> set[torch.dtype]:
        return {info.dtype for info in self.arrays.values()}

    def table_dtype(self) -> torch.dtype:
        """Dtype of the embedding table, which decides how sqrt(width) is rounded."""
        return self.arrays["llm/embedder/input_embedding"].dtype

    def infer_config(self) -> PaliGemmaConfig:
        """The config of a released size, recognised by its shapes; see `infer_config`."""
        return infer_config({key: info.shape for key, info in self.arrays.items()}, self.name)

    def problems(self, config: PaliGemmaConfig) -> list[str]:
        """Every missing, unexpected and misshaped array, one sentence each; empty when all fits."""
        wanted = {row.key: row.shape(config) for row in rows(config, fused=self.fused)}
        found = {key: info.shape for key, info in self.arrays.items()}
        return compare_shapes(wanted, found)

    def read(self, torch_name: str) -> Tensor:
        """One parameter that is not stacked over layers, such as the embedding table."""
        row = next(row for row in _TABLE if row.names == (torch_name,) and not row.stacked)
        return row.to_torch(self._npz.read(self._prefix + row.key)).contiguous()

    def tensors(self, config: PaliGemmaConfig) -> Iterator[tuple[str, Tensor]]:
        """(torch name, tensor) of every parameter in the table's order, one layer at a time."""
        for row in rows(config, fused=self.fused):
            key = self._prefix + row.key
            if not row.stacked:
                yield row.names[0], self.read(row.names[0])
                continue
            for layer, block in enumerate(self._npz.slices(key)):
                parts = block.unbind() if len(row.names) > 1 else (block,)
                for name, part in zip(row.names, parts, strict=True):
                    yield name.format(layer), row.to_torch(part).contiguous()


def write_npz(
    npz: NpzWriter,
    config: PaliGemmaConfig,
    get: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    fused: bool | None = None,
) -> None:
    """Write a checkpoint in the original's layout.

    Args:
        npz: open for writing.
        get: torch name -> parameter; called once a name in the order of `BigVisionReader.tensors`.
        dtype: float32, float16 or bfloat16 (stored as |V2).
        fused: as in `rows`.
    """

    def blocks(row: Row) -> Iterable[Tensor]:
        depth = row.shape(config)[0] if row.stacked else 1
        for layer in range(depth):
            for name in row.names:
                parameter = name.format(layer)
                yield row.from_torch(cast(get(parameter).detach(), dtype, parameter), config)

    for row in rows(config, fused=fused):
        npz.write("params/" + row.key, row.shape(config), dtype, blocks(row))


def infer_config(shapes: Mapping[str, tuple[int, ...]], source: str) -> PaliGemmaConfig:
    """Recognise a released model by the shapes of its arrays (keys without prefix).

    Shapes do not tell the query scale or the soft-caps, so only released decoders are recognised.

    Raises:
        CheckpointError: an array that tells the architecture is missing, or the decoder is of no
            released size.
    """
    telling = {
        "kernel": ("img/embedding/kernel", 4),
        "pos": ("img/pos_embedding", 3),
        "query": (_ATTN + "query/kernel", 4),
        "fc1": (_MLP + "Dense_0/kernel", 3),
        "embed": ("llm/embedder/input_embedding", 2),
        "q": ("llm/layers/attn/q_einsum/w", 4),
        "kv": ("llm/layers/attn/kv_einsum/w", 5),
        "linear": ("llm/layers/mlp/linear", 3),
    }
    wrong = [key for key, rank in telling.values() if len(shapes.get(key, ())) != rank]
    if wrong:
        raise CheckpointError(
            f"a big_vision checkpoint must hold {', '.join(wrong)}, {source} does not (or with "
            "another rank); is this a PaliGemma file, complete?"
        )
    s = {name: shapes[key] for name, (key, _) in telling.items()}
    vision = VisionConfig(
        image_size_px=math.isqrt(s["pos"][1]) * s["kernel"][0],
        patch_size_px=s["kernel"][0],
        width=s["kernel"][3],
        depth=s["query"][0],
        mlp_dim=s["fc1"][2],
        num_heads=s["query"][2],
    )
    post_norms = "llm/layers/post_ffw_norm/scale" in shapes
    for text in TEXT_CONFIGS.values():
        if _text_shape(text) == (s["q"], s["kv"][2], s["linear"][1], post_norms):
            return PaliGemmaConfig(
                vision=vision, text=text, vocab=replace(GEMMA_VOCAB, size=s["embed"][0])
            )
    raise CheckpointError(
        f"the decoder must be of a released size ({', '.join(TEXT_CONFIGS)}), {source} has query "
        f"weights {s['q']}; give the config, or put a config.json beside the file"
    )


def _text_shape(text: TextConfig) -> tuple[tuple[int, ...], int, int, bool]:
    query = (text.depth, text.num_heads, text.width, text.head_dim)
    return query, text.num_kv_heads, text.mlp_dim, text.post_norms
