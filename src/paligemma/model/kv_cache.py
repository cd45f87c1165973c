"""Keys and values of the tokens seen so far; an argument of the forward, never part of a module."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of every layer.

    Rows of unequal prompts are padded on the right; `valid` keeps the padding slots out of
    attention for ever, so a generated token takes the same slot in every row.

    Attributes:
        keys, values: [B, capacity, K, H] a layer.
        valid: bool[B, capacity], slots that hold a real token.
        positions: int64[B, capacity], rotary position of each slot.
        length: slots in use.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (batch_size, capacity, num_kv_heads, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.valid = torch.zeros(shape[:2], dtype=torch.bool, device=device)
        self.positions = torch.zeros(shape[:2], dtype=torch.long, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.valid.shape[1]

    def reserve(self, valid: Tensor, positions: Tensor) -> slice:
        """Claim the next slots for tokens about to be written.

        Args:
            valid: bool[B, T].
            positions: int[B, T].

        Returns:
            The slots, to be passed to `write` by each layer.

        Raises:
            ValueError: the cache is full.
        """
        end = self.length + valid.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, {end} were asked for")
        slots = slice(self.length, end)
        self.valid[:, slots] = valid
        self.positions[:, slots] = positions
        self.length = end
        return slots

    def write(self, layer: int, slots: slice, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store float[B, T, K, H] of one layer and return all keys and values up to `slots.stop`.

        What is returned has passed through the cache's dtype, as in the original, in prefill too.
        """
        self.keys[layer][:, slots] = k.to(self.keys[layer].dtype)
        self.values[layer][:, slots] = v.to(self.values[layer].dtype)
        return (
            self.keys[layer][:, : slots.stop].to(k.dtype),
            self.values[layer][:, : slots.stop].to(v.dtype),
        )

    def select(self, rows: Tensor) -> KVCache:
        """A cache of the given rows (int64[B']), repeated or reordered; used by beam search."""
        chosen = object.__new__(KVCache)
        chosen.keys = [k[rows] for k in self.keys]
        chosen.values = [v[rows] for v in self.values]
        chosen.valid = self.valid[rows]
        chosen.positions = self.positions[rows]
        chosen.length = self.length
        return chosen
