"""Language models small enough to enumerate: what decoding is tested on without a network."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from paligemma.batch import Batch, TokenRow
from paligemma.vocab import Vocab

# Ids 3.. are text, then 1,024 location tokens, then 128 codewords.
NUM_TEXT = 12
OBJECT_VOCAB = Vocab(
    size=3 + NUM_TEXT + 1024 + 128, pad=0, eos=1, bos=2, sep=3, loc0=3 + NUM_TEXT, seg0=1039
)


def small_vocab(size: int) -> Vocab:
    return Vocab(size=size, pad=0, eos=1, bos=2, sep=2, loc0=-1, seg0=-1)


class History:
    """A cache that remembers the tokens themselves; a view shares the list of its base.

    Attributes:
        capacity: most tokens a row may have.
    """

    def __init__(
        self, base: list[tuple[int, ...]], capacity: int, start: int = 0, stop: int | None = None
    ) -> None:
        self.base, self.capacity = base, capacity
        self.span = slice(start, len(base) if stop is None else stop)

    @property
    def rows(self) -> list[tuple[int, ...]]:
        return self.base[self.span]

    @rows.setter
    def rows(self, rows: list[tuple[int, ...]]) -> None:
        assert len(rows) == len(self.rows)
        assert all(len(row) <= self.capacity for row in rows)
        self.base[self.span] = rows

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def select(self, rows: Tensor) -> History:
        return History([self.rows[row] for row in rows.tolist()], self.capacity)

    def reorder(self, rows: Tensor) -> None:
        self.rows = self.select(rows).rows

    def view(self, start: int, stop: int) -> History:
        assert 0 <= start < stop <= len(self.base)
        return History(self.base, self.capacity, start, stop)

    def move(self, source: int, target: int) -> None:
        self.base[target] = self.base[source]

    def resize(self, num_rows: int, capacity: int) -> None:
        self.base = [*self.base[:num_rows], *[()] * (num_rows - len(self.base))]
        self.capacity, self.span = capacity, slice(0, num_rows)


class FakeModel:
    """Logits are random but fixed by all tokens seen, so that a wrong cache or order shows."""

    device = torch.device("cpu")

    def __init__(
        self, vocab: Vocab, *, seed: int = 0, scale: float = 2.0, runs: bool = False
    ) -> None:
        self.config = SimpleNamespace(vocab=vocab)
        self.seed, self.scale = seed, scale
        self.runs = runs
        self.num_steps = 0
        self.num_prefills = 0

    def new_cache(self, batch_size: int, capacity: int, dtype: torch.dtype) -> History:
        self.cache = History([()] * batch_size, capacity)
        return self.cache

    def prefill(
        self,
        soft_tokens: Tensor | None,
        tokens: Tensor,
        mask_ar: Tensor,
        valid: Tensor,
        cache: History,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        self.num_prefills += 1
        cache.rows = [
            tuple(row[keep].tolist()) for row, keep in zip(tokens, valid.bool(), strict=True)
        ]
        return self._logits(cache), valid.sum(dim=1)

    def decodes_runs(self, cache: History) -> bool:
        return self.runs

    def decode_runs(
        self,
        tokens: Tensor,
        rows: Tensor,
        positions: Tensor,
        cache: History,
        ids: list[range] | None = None,
    ) -> Tensor:
        self.num_steps += 1
        found = []
        seen = [*cache.rows]
        for token, row, position in zip(
            tokens.tolist(), rows.tolist(), positions.tolist(), strict=True
        ):
            assert position == len(seen[row])
            seen[row] = (*seen[row], token)
            logits = torch.full((self.config.vocab.size,), -torch.inf)
            for part in [range(len(logits))] if ids is None else ids:
                logits[part] = self.logits_after(seen[row])[part]
            found.append(logits)
        cache.rows = seen
        return torch.stack(found)

    def decode_step(self, tokens: Tensor, positions: Tensor, cache: History) -> Tensor:
        self.num_steps += 1
        assert positions.tolist() == [len(row) for row in cache.rows]
        cache.rows = [(*row, token) for row, token in zip(cache.rows, tokens.tolist(), strict=True)]
        return self._logits(cache)

    def logits_after(self, seen: tuple[int, ...]) -> Tensor:
        """float32[V]."""
        generator = torch.Generator().manual_seed(hash((self.seed, seen)) % 2**31)
        return torch.randn(self.config.vocab.size, generator=generator) * self.scale

    def _logits(self, cache: History) -> Tensor:
        return torch.stack([self.logits_after(row) for row in cache.rows])


def text_batch(*prompts: tuple[int, ...]) -> Batch:
    """Prompts of unequal length, padded on the right; an empty one only pads the batch."""
    return Batch.from_rows([prompt_row(prompt) for prompt in prompts], pad=0)


def prompt_row(tokens: tuple[int, ...]) -> TokenRow:
    """A prompt to be continued: one block of valid tokens, none of them a target."""
    none = (0,) * len(tokens)
    return TokenRow(tokens=tokens, mask_ar=none, mask_input=(1,) * len(tokens), mask_loss=none)
