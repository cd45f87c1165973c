"""Soft tokens of pictures that were encoded before, found again by the pictures' content."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from paligemma.model import PaliGemmaModel

# The adapter that changes the tower, and a digest of the pixels.
Key = tuple[str | None, bytes]


class PictureCache:
    """Keeps what was asked for last, within a bound in bytes.

    Soft tokens depend on pixels and tower alone. A tower with a part that was replaced, moved or
    written to since makes everything that it encoded unknown.

    Args:
        max_bytes: bound of all soft tokens together; 0 keeps none.

    Attributes:
        num_bytes: that are kept.
        num_hits, num_misses: pictures that were asked for and known, and those that were not.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = self.num_misses = 0
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._towers: dict[str | None, list[tuple[weakref.ref[Any], int, int]]] = {}

    def opens(self, model: PaliGemmaModel, adapter: str | None) -> bool:
        """Whether the cache may serve a tower as it is now, under its adapter."""
        if self.max_bytes == 0:
            return False
        parts = list(_parts(model))
        if any(tensor.is_inference() for _, tensor in parts if tensor is not None):
            return False  # such a tensor counts no writes
        now = [
            (part, -1, -1) if tensor is None else (part, tensor._version, tensor.data_ptr())
            for part, tensor in parts
        ]
        before = self._towers.get(adapter)
        same = before is not None and len(before) == len(now)
        if not same or any(
            seen() is not part or (version, place) != (own_version, own_place)
            for (seen, version, place), (part, own_version, own_place) in zip(
                before or (), now, strict=True
            )
        ):
            for key in [key for key in self._kept if key[0] == adapter]:
                self._drop(key)
            self._towers[adapter] = [
                (weakref.ref(part), version, place) for part, version, place in now
            ]
        return True

    def key(self, adapter: str | None, pixels: Tensor) -> Key:
        """The name of one example's prepared pixels under an adapter."""
        content = pixels.detach().cpu().contiguous()
        digest = hashlib.blake2b(repr((tuple(content.shape), content.dtype)).encode())
        digest.update(content.flatten().view(torch.uint8).numpy().data)
        return adapter, digest.digest()

    def get(self, key: Key) -> Tensor | None:
        """A copy of a picture's soft tokens; the picture now counts as asked for last."""
        if key not in self._kept:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._kept.move_to_end(key)
        return self._kept[key].clone()

    def put(self, key: Key, soft_tokens: Tensor) -> None:
        """Keep a copy of a picture's soft tokens, and forget others where the bound asks for it."""
        if key in self._kept or soft_tokens.nbytes > self.max_bytes:
            return
        # The user may write to what is handed out, and a part of a batch would keep all of it.
        self._kept[key] = soft_tokens.clone()
        self.num_bytes += soft_tokens.nbytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        self.num_bytes -= self._kept.pop(key).nbytes


def _parts(model: PaliGemmaModel) -> Iterator[tuple[Any, Tensor | None]]:
    """Everything that a picture's soft tokens depend on: modules, and their tensors."""
    for tower in (model.vision, model.projector):
        for module in tower.modules():
            yield module, None
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    yield tensor, tensor
