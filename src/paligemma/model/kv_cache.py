"""Keys and values of the tokens seen so far; an argument of the forward, never part of a module.

Axes: B batch, T tokens, K key/value heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stored_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one head of one token's keys or values."""
    scale = torch.float32.itemsize if dtype == torch.int8 else 0
    return scale + head_dim * dtype.itemsize


def quantise(x: Tensor) -> Tensor:
    """Whole numbers of -127..127 behind their scale, the largest magnitude of a head over 127.

    The nearest multiple of the scale, so the error is half of it at most. A head with a NaN or an
    infinity becomes NaN.

    Args:
        x: float[..., H].

    Returns:
        int8[..., 4 + H]: four bytes of a float32, and the numbers. One tensor, so that whatever
        moves rows moves their scales.
    """
    wide = x.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / 127
    numbers = (wide / torch.where(scale > 0, scale, 1.0)).round_().clamp_(-127, 127)
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    return torch.cat((scale.view(torch.int8), numbers.nan_to_num_().to(torch.int8)), dim=-1)


def widen(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantise` wrote, int8[..., 4 + H], as float[..., H]."""
    scale = stored[..., :4].contiguous().view(torch.float32)
    return (stored[..., 4:] * scale).to(dtype)


class KVCache:
    """Preallocated keys and values of every layer.

    A row is one answer with its prompt. Every row has a next slot of its own, so a generated token
    directly follows the prompt of its row, and rows may begin and end at different times:

        row 0   img img bos pre sep suf suf  .    three prompt tokens, two generated
        row 1   img img bos sep suf  .   .   .    two prompt tokens, one generated
                                    length = 7    slots that attention reads

    Attributes:
        keys, values: [B, capacity, K, H] of each layer, on its device; in int8
            [B, capacity, K, 4 + H], as `quantise` writes them.
        valid: bool[B, capacity], slots that hold a token of their row.
        positions: int64[B, capacity], rotary position of each slot.
        ends: int64[B] on the CPU, the next slot of each row.
        length: number of slots that attention reads.
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
        layer_devices: Sequence[torch.device] | None = None,
    ) -> None:
        stored = stored_bytes(head_dim, dtype) // dtype.itemsize
        shape = (batch_size, capacity, num_kv_heads, stored)
        places = layer_devices or [torch.device(device)] * num_layers
        self.keys = [torch.zeros(shape, dtype=dtype, device=place) for place in places]
        self.values = [torch.zeros(shape, dtype=dtype, device=place) for place in places]
        self.valid = torch.zeros(shape[:2], dtype=torch.bool, device=device)
        self.positions = torch.zeros(shape[:2], dtype=torch.long, device=device)
        self.ends = torch.zeros(batch_size, dtype=torch.long)
        self.length = 0
        # Rows and slots of the tokens about to be written, as an index of [B, capacity].
        self._place: tuple[slice | Tensor, slice | Tensor] = (slice(None), slice(0))

    @property
    def num_rows(self) -> int:
        return self.valid.shape[0]

    @property
    def capacity(self) -> int:
        return self.valid.shape[1]

    def start(self, valid: Tensor, positions: Tensor) -> None:
        """Claim the first slots of every row for a prompt, forgetting what the rows held.

        A row goes on after its last valid token, over the padding that may follow it.

        Args:
            valid: bool[B, T], False for padding.
            positions: int64[B, T].

        Raises:
            ValueError: the prompts are longer than the capacity.
        """
        length = valid.shape[1]
        self._require_room(length)
        self._place = (slice(None), slice(0, length))
        self.valid[:, :length] = valid
        self.valid[:, length:] = False
        self.positions[:, :length] = positions
        after = torch.arange(1, length + 1, device=valid.device)
        self.ends.copy_(torch.where(valid, after, 0).amax(dim=1))
        self.length = length

    def extend(self, positions: Tensor) -> None:
        """Claim the next slot of every row for one more token.

        Args:
            positions: int64[B, 1].

        Raises:
            ValueError: a row is full.
        """
        first, last = (int(slot) for slot in self.ends.aminmax())
        self._require_room(last + 1)
        if first == last:
            self._place = (slice(None), slice(first, last + 1))
        else:
            device = self.valid.device
            rows = torch.arange(self.num_rows, device=device)[:, None]
            # A copy: the slots of this step must not move on with `ends`.
            self._place = (rows, self.ends[:, None].clone().to(device))
        self.valid[self._place] = True
        self.positions[self._place] = positions
        self.ends += 1
        self.length = last + 1

    def claim_next(self) -> list[int]:
        """Claim the next slot of every row for a token that is stored and noted elsewhere.

        Returns:
            The slot of each row.

        Raises:
            ValueError: a row is full.
        """
        slots = self.ends.tolist()
        self._require_room(max(slots) + 1)
        self.ends += 1
        self.length = max(slots) + 1
        return slots

    def give_back(self, slots: Sequence[int]) -> None:
        """Undo `claim_next`, which gave these slots."""
        self.ends.copy_(torch.tensor(slots))
        self.length = max(slots)

    def claim(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Claim the next slots of some rows for tokens that `write` will not store.

        Args:
            rows: int64[N] on the CPU, the row of each token; the tokens of one row in order.
            positions: int64[N].

        Returns:
            int64[N] on the CPU, the slot after each token's own.

        Raises:
            ValueError: a row is full.
        """
        after, ends = self.ends.tolist(), []
        for row in rows.tolist():
            after[row] += 1
            ends.append(after[row])
        self._require_room(max(after))
        self.ends.copy_(torch.tensor(after))
        claimed = torch.tensor(ends)
        self.valid[rows, claimed - 1] = True
        self.positions[rows, claimed - 1] = positions
        self.length = max(after)
        return claimed

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer of the tokens for which slots were claimed.

        Args:
            k, v: float[B, T, K, H].

        Returns:
            Keys and values of the first `length` slots. All of them have passed through the cache's
            dtype, also in prefill, as in the original: what a token sees of another depends only
            on that token, wherever a prompt was cut.
        """
        keys, values = self.keys[layer], self.values[layer]
        rows, slots = (_beside(index, keys) for index in self._place)
        for memory, new in ((keys, k), (values, v)):
            is_int8 = memory.dtype == torch.int8
            memory[rows, slots] = quantise(new) if is_int8 else new.to(memory.dtype)
        used = keys[:, : self.length], values[:, : self.length]
        if keys.dtype == torch.int8:
            return widen(used[0], k.dtype), widen(used[1], v.dtype)
        return used[0].to(k.dtype), used[1].to(v.dtype)

    def select(self, rows: Tensor) -> KVCache:
        """A cache with copies of the given rows (int64[B']), repeated or reordered."""
        chosen = object.__new__(KVCache)
        chosen.keys = [keys[_beside(rows, keys)] for keys in self.keys]
        chosen.values = [values[_beside(rows, values)] for values in self.values]
        chosen.valid = self.valid[rows]
        chosen.positions = self.positions[rows]
        chosen.ends = self.ends[rows.to(self.ends.device)]
        chosen.length = self.length
        chosen._place = self._place
        return chosen

    def reorder(self, rows: Tensor) -> None:
        """Replace each row by the given one (int64[B]), layer by layer and only as far as it is
        filled; used by beam search."""
        for tensor in (*self.keys, *self.values, self.valid, self.positions):
            used = tensor[:, : self.length]
            used.copy_(used[_beside(rows, used)])
        self.ends.copy_(self.ends[rows.to(self.ends.device)])

    def view(self, start: int, stop: int) -> KVCache:
        """Some neighbouring rows as a cache in the same memory."""
        part = object.__new__(KVCache)
        part.keys = [keys[start:stop] for keys in self.keys]
        part.values = [values[start:stop] for values in self.values]
        part.valid, part.positions = self.valid[start:stop], self.positions[start:stop]
        part.ends = self.ends[start:stop]
        part.length, part._place = self.length, self._place
        return part

    def move(self, source: int, target: int) -> None:
        """Replace the row `target` by the row `source`, as far as that is filled."""
        end = int(self.ends[source])
        for tensor in (*self.keys, *self.values, self.positions):
            tensor[target, :end] = tensor[source, :end]
        self.valid[target] = self.valid[source]
        self.ends[target] = end

    def resize(self, num_rows: int, capacity: int) -> None:
        """Allocate for other numbers of rows and slots, layer by layer, and keep what fits.

        Views of the cache stay with the old memory.
        """
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = _resized(tensor, num_rows, capacity)
        self.valid = _resized(self.valid, num_rows, capacity)
        self.positions = _resized(self.positions, num_rows, capacity)
        self.ends = _resized(self.ends[:, None], num_rows, 1)[:, 0]

    def _require_room(self, num_tokens: int) -> None:
        if num_tokens > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, {num_tokens} were asked for")


def _beside(index: slice | Tensor, tensor: Tensor) -> slice | Tensor:
    """An index on the device of what it selects from; layers may lie on other devices."""
    return index if isinstance(index, slice) else index.to(tensor.device)


def _resized(tensor: Tensor, num_rows: int, capacity: int) -> Tensor:
    """[B, capacity, ...] with other numbers of rows and slots."""
    resized = tensor.new_zeros((num_rows, capacity, *tensor.shape[2:]))
    kept = tensor[:num_rows, :capacity]
    resized[: kept.shape[0], : kept.shape[1]] = kept
    return resized
