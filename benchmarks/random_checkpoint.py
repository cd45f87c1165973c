"""A hub folder with the shapes of a release and random weights: speed and memory need no others.

Every tensor has data of its own: a runtime may merge equal constants and look impossibly fast.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from paligemma.config import (
    GEMMA_2B,
    SO400M_14,
    PaliGemmaConfig,
    find_release,
    release_config,
)
from paligemma.processing.sentencepiece_model import append_object_pieces
from paligemma.vocab import NUM_LOC, NUM_SEG, Vocab
from paligemma.weights import hf
from paligemma.weights.hf_config import hf_config
from paligemma.weights.safetensors_file import SafetensorsWriter
from paligemma.weights.shapes import parameter_shapes

CONFIGS = ("release", "middle", "tiny")
# Files of the hub are divided at about this size.
SHARD_BYTES = 5_000_000_000
# Elements drawn at once in float32: the only memory beside the tensor being written.
_CHUNK = 1 << 24
_SEPARATOR_ID = 108
# For varied answers, see `random_tensor`; the second in decoders that normalise what blocks add.
_GAINS = {"text.embed.weight": 1 / 8, "attn.out.weight": 1 / 8, "mlp.down.weight": 2.0}
_NORM_GAINS = {"post_attn_norm.scale": 1 / 8, "post_ffw_norm.scale": 2.0}

# sentencepiece_model.proto: ModelProto.SentencePiece.Type and TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_BPE = 2


def choose_config(name: str, release: str) -> PaliGemmaConfig:
    """The architecture of a release, or a made-up smaller one ("middle", "tiny") for checks."""
    if name == "release":
        row, image_size_px = find_release(release)
        return release_config(row.text, image_size_px)
    if name == "middle":
        return PaliGemmaConfig(
            vision=replace(SO400M_14, depth=4),
            text=replace(GEMMA_2B, width=1024, depth=4, mlp_dim=8192),
            vocab=_vocab(32_000),
        )
    return PaliGemmaConfig(
        vision=replace(SO400M_14, image_size_px=56, width=48, depth=2, mlp_dim=96, num_heads=4),
        text=replace(
            GEMMA_2B, width=64, depth=3, mlp_dim=128, num_heads=4, head_dim=16, query_scale=0.25
        ),
        vocab=_vocab(512),
    )


def _vocab(num_pieces: int) -> Vocab:
    return Vocab(
        size=num_pieces + NUM_LOC + NUM_SEG,
        pad=0,
        eos=1,
        bos=2,
        sep=_SEPARATOR_ID,
        loc0=num_pieces,
        seg0=num_pieces + NUM_LOC,
    )


def write_checkpoint(workdir: Path, name: str, config: PaliGemmaConfig, dtype: torch.dtype) -> Path:
    """The folder of that name with config.json, tokenizer.model and shards; reused if it is there.

    Args:
        workdir: where the folder is made; it appears complete or not at all.
        name: of the folder.
        dtype: of the weights.

    Raises:
        SystemExit: the disk has no room for it.
    """
    folder = workdir / name
    if folder.is_dir():
        return folder
    staging = workdir / f".{name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    num_rows = (config.vocab.size // hf.ROW_MULTIPLE + 1) * hf.ROW_MULTIPLE  # as published
    _require_room(staging, config, dtype)
    body = hf_config(config, dtype=dtype, num_rows=num_rows)
    (staging / "config.json").write_text(json.dumps(body, indent=2) + "\n")
    (staging / "tokenizer.model").write_bytes(tokenizer_model(config.vocab.loc0))
    _write_weights(staging, config, dtype, num_rows)
    os.sync()  # so that no measurement meets the disk still writing
    staging.rename(folder)
    return folder


def count_parameters(config: PaliGemmaConfig) -> int:
    """Parameters of the model; the head is the embedding table."""
    return sum(map(math.prod, parameter_shapes(config).values()))


def _require_room(folder: Path, config: PaliGemmaConfig, dtype: torch.dtype) -> None:
    needed = count_parameters(config) * dtype.itemsize * 1.05
    free = shutil.disk_usage(folder).free
    if free < needed:
        folder.rmdir()
        raise SystemExit(
            f"the weights need {needed / 1e9:.1f} GB of disk, {folder.parent} has "
            f"{free / 1e9:.1f} GB; choose another --workdir"
        )


def _write_weights(
    folder: Path, config: PaliGemmaConfig, dtype: torch.dtype, num_rows: int
) -> None:
    shapes = {
        name: hf.file_shape(name, config, shape) for name, shape in parameter_shapes(config).items()
    }
    shapes["text.embed.weight"] = (num_rows, config.text.width)
    keys = {name: hf.spell(hf.bare_name(name, config.generation), "published") for name in shapes}
    total = sum(map(math.prod, shapes.values())) * dtype.itemsize
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="random weights", leave=False)
    with (
        bar,
        SafetensorsWriter(
            folder,
            {keys[name]: shape for name, shape in shapes.items()},
            dtype=dtype,
            max_shard_bytes=SHARD_BYTES,
        ) as writer,
    ):
        for name, shape in shapes.items():
            tensor = random_tensor(name, shape, dtype)
            if name == "text.embed.weight":
                tensor[config.vocab.size :] = 0  # the rows that pad the table never win
            writer.write(keys[name], tensor)
            bar.update(tensor.nbytes)


def random_tensor(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Data of one tensor; the same name gives the same data on devices of one kind.

    Matrices keep the variance of what they multiply, so that activations stay of order one. A few
    gains let answers vary: a large table, being the head too, makes each token repeat itself, and
    loud attention, being much the same for every token, drowns them.
    """
    tensor = torch.empty(shape, dtype=dtype, device=device)
    flat = tensor.view(-1)
    generator = torch.Generator(device=device).manual_seed(zlib.crc32(name.encode()))
    is_matrix = len(shape) > 1
    std = math.prod(shape[1:]) ** -0.5 if is_matrix else 0.1
    std *= next((gain for end, gain in _GAINS.items() if name.endswith(end)), 1.0)
    # The factors of LayerNorm are stored as they are, those of RMSNorm as offsets from one.
    mean = 1.0 if not is_matrix and name.endswith("weight") else 0.0
    mean += next((gain - 1 for end, gain in _NORM_GAINS.items() if name.endswith(end)), 0.0)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(torch.randn(part.numel(), generator=generator, device=device) * std + mean)
    return tensor


def tokenizer_model(num_pieces: int) -> bytes:
    """A SentencePiece file: control pieces and "\\n" at Gemma's ids, ASCII, filling, object pieces.

    Args:
        num_pieces: before the 1,152 object pieces.
    """
    entries = [("<pad>", _CONTROL), ("<eos>", _CONTROL), ("<bos>", _CONTROL), ("<unk>", _UNKNOWN)]
    entries += [(f"<reserved{index}>", _NORMAL) for index in range(4, _SEPARATOR_ID)]
    entries += [("\n", _USER_DEFINED)]
    # "▁" is a space.
    entries += [(letter, _NORMAL) for letter in ("▁", *map(chr, range(0x21, 0x7F)))]
    entries += [(f"<reserved{index}>", _NORMAL) for index in range(len(entries), num_pieces)]
    pieces = (_field(1, _piece(text, kind)) for text, kind in entries)
    trainer = _field(2, _number(3, _BPE))
    # No space is added in front, none is removed.
    normalizer = _field(3, _field(1, b"identity") + _number(3, 0) + _number(4, 0))
    return append_object_pieces(b"".join(pieces) + trainer + normalizer)


def _piece(text: str, kind: int) -> bytes:
    return _field(1, text.encode()) + b"\x15" + struct.pack("<f", 0.0) + _number(3, kind)


def _field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes."""
    return bytes([number << 3 | 2, *_varint(len(data))]) + data


def _number(number: int, value: int) -> bytes:
    """A protobuf field that is a whole number."""
    return bytes([number << 3, *_varint(value)])


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
