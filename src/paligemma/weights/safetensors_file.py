"""Safetensors: opened, and written one tensor at a time, into one file or several shards.

The safetensors package writes what is in memory at once; here the headers follow from the shapes,
and each tensor goes to its place as it arrives. Format: eight bytes of header length, a JSON
header, the data without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma.errors import CheckpointError
from paligemma.stand_ins import stand_in

INDEX_NAME = "model.safetensors.index.json"
_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
# The data begin at a multiple of so many bytes, and so do tensors after others of such sizes.
_ALIGNMENT = 64


def open_safetensors(path: Path) -> Any:
    """A file as `safetensors.safe_open` gives it, whose tensors are mapped.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # its own error says what is wrong
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        said = getattr(error, "strerror", None) or stand_in(path) or str(error)[:200]
        raise CheckpointError(
            f"a safetensors file must be complete, {path} is not readable ({said}); fetch it again"
        ) from error


class SafetensorsFile:
    """One file, into which tensors are written in any order.

    Args:
        path: the caller makes the writing atomic by giving a temporary folder.
        entries: key -> dtype and shape of every tensor to come, in the order they should lie.
        metadata: texts by name.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str],
    ) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._entries = dict(entries)
        self._starts: dict[str, int] = {}
        end = 0
        for key, (dtype, shape) in entries.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            self._starts[key] = start
            header[key] = {
                "dtype": _CODES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._base = self._file.tell()
        self._file.truncate(self._base + end)

    def write(self, key: str, tensor: Tensor) -> None:
        """Put one tensor in its place; each key once.

        Raises:
            ValueError: dtype or shape differ from what was announced.
            KeyError: the key was not announced, or was written before.
        """
        dtype, shape = self._entries.pop(key)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{key} was announced as {dtype} {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
            )
        self._file.seek(self._base + self._starts[key])
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._file.close()
        if error is None and self._entries:
            raise ValueError(f"never written: {', '.join(self._entries)}")


class SafetensorsWriter:
    """Files `model.safetensors`, or `model-0000k-of-0000n.safetensors` with an index, in a folder.

    Args:
        folder: exists; the caller makes the writing atomic by giving a temporary one.
        shapes: key -> shape of every tensor to come, in the order they should lie.
        dtype: of all of them that `other_dtypes` does not name.
        max_shard_bytes: start another file before this is exceeded; one tensor is never divided.
        other_dtypes: key -> dtype of single tensors.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: torch.dtype,
        max_shard_bytes: int,
        other_dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        self._file_of: dict[str, SafetensorsFile] = {}
        dtypes = dict.fromkeys(shapes, dtype) | dict(other_dtypes or {})
        sizes = {key: math.prod(shape) * dtypes[key].itemsize for key, shape in shapes.items()}
        shards = _split(sizes, max_shard_bytes)
        weight_map = {}
        with ExitStack() as files:
            for number, keys in enumerate(shards, start=1):
                name = (
                    "model.safetensors"
                    if len(shards) == 1
                    else f"model-{number:05}-of-{len(shards):05}.safetensors"
                )
                entries = {key: (dtypes[key], tuple(shapes[key])) for key in keys}
                file = SafetensorsFile(folder / name, entries, {"format": "pt"})
                self._file_of |= dict.fromkeys(keys, files.enter_context(file))
                weight_map.update(dict.fromkeys(keys, name))
            self._files = files.pop_all()
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")

    def write(self, key: str, tensor: Tensor) -> None:
        """Put one tensor in its place, as `SafetensorsFile.write` does."""
        self._file_of[key].write(key, tensor)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)


def _split(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards
