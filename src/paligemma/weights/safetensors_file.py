"""Writing safetensors one tensor at a time, in any order, into one file or several shards.

The safetensors package writes what is in memory at once; here the headers follow from the shapes,
and each tensor goes to its place as it arrives. Format: eight bytes of header length, a JSON
header, the data without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class _Place:
    file: IO[bytes]
    offset: int
    shape: tuple[int, ...]


class SafetensorsWriter:
    """Files `model.safetensors`, or `model-0000k-of-0000n.safetensors` with an index, in a folder.

    Args:
        folder: exists; the caller makes the writing atomic by giving a temporary one.
        shapes: key -> shape of every tensor to come, in the order they should lie.
        dtype: of all of them.
        max_shard_bytes: start another file before this is exceeded; one tensor is never divided.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: torch.dtype,
        max_shard_bytes: int,
    ) -> None:
        self._dtype = dtype
        self._places: dict[str, _Place] = {}
        self._files: list[IO[bytes]] = []
        shards = _split(shapes, dtype.itemsize, max_shard_bytes)
        weight_map = {}
        for number, keys in enumerate(shards, start=1):
            name = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05}-of-{len(shards):05}.safetensors"
            )
            self._start((folder / name).open("wb"), {key: shapes[key] for key in keys})
            weight_map.update(dict.fromkeys(keys, name))
        if len(shards) > 1:
            total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")

    def _start(self, file: IO[bytes], shapes: Mapping[str, tuple[int, ...]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        starts = {}
        for key, shape in shapes.items():
            starts[key], end = end, end + math.prod(shape) * self._dtype.itemsize
            header[key] = {
                "dtype": _CODES[self._dtype],
                "shape": list(shape),
                "data_offsets": [starts[key], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        base = file.tell()
        file.truncate(base + end)
        self._files.append(file)
        self._places |= {
            key: _Place(file, base + start, tuple(shapes[key])) for key, start in starts.items()
        }

    def write(self, key: str, tensor: Tensor) -> None:
        """Put one tensor in its place; each key once.

        Raises:
            ValueError: dtype or shape differ from what was announced.
            KeyError: the key was not announced, or was written before.
        """
        place = self._places.pop(key)
        if tensor.dtype != self._dtype or tuple(tensor.shape) != place.shape:
            raise ValueError(
                f"{key} was announced as {self._dtype} {place.shape}, got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        place.file.seek(place.offset)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        place.file.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for file in self._files:
            file.close()
        if error is None and self._places:
            raise ValueError(f"never written: {', '.join(self._places)}")


def _split(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards
