"""Tensors of a checkpoint on disk, whole or in the shards of several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paligemma.train.sharding import divided_like, is_divided, own_rows, rows_of


def shard_files(folder: Path, part: str, shards: int | None) -> tuple[Path, ...]:
    """The files of a part: one, or one of each process that wrote it."""
    if shards is None:
        return (folder / f"{part}.safetensors",)
    return tuple(
        folder / f"{part}-{rank:05d}-of-{shards:05d}.safetensors" for rank in range(shards)
    )


def save_own(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write what this process has of some tensors."""
    save_file({name: own_rows(tensor).contiguous() for name, tensor in tensors.items()}, file)


@dataclass(frozen=True)
class StoredTensors:
    """Tensors by name; only what is asked for is read.

    Attributes:
        files: one file, or the shards of all processes in their order.
    """

    files: Sequence[Path]

    @cached_property
    def _open(self) -> list[Any]:
        """The files, whose headers are read once."""
        return [safe_open(path, framework="pt") for path in self.files]

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._open[0].keys())

    def count(self, name: str) -> int:
        """Number of rows of a tensor, over all shards."""
        return sum(file.get_slice(name).get_shape()[0] for file in self._open)

    def get(self, name: str) -> Tensor:
        """A whole tensor."""
        if len(self.files) > 1:
            return self._rows(name, 0, self.count(name))
        return self._open[0].get_tensor(name)

    def like(self, name: str, template: Tensor | None) -> Tensor:
        """A tensor as this process keeps it: divided if the template is, else whole.

        Raises:
            ValueError: it has another number of rows than the template.
        """
        if template is None or not is_divided(template):
            return self.get(name)
        if self.count(name) != template.shape[0]:
            raise ValueError(f"{name} has {self.count(name)} rows instead of {template.shape[0]}")
        return divided_like(template, lambda start, stop: self._rows(name, start, stop))

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        count, pieces = self.count(name), []
        for rank, file in enumerate(self._open):
            first, last = rows_of(count, rank, len(self._open))
            here = file.get_slice(name)
            pieces.append(here[max(start, first) - first : max(0, min(stop, last) - first)])
        return torch.cat(pieces)
