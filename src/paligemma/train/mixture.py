"""Which row of which source stands at a place of a mixture: drawn from seed and place alone.

A source is drawn for every place by the weights, independently: how often each stands in a block
of places first, which takes no walk to a place far away, then the order in the block. The rows of
each source follow one another in passes of their own, each in a new order, so that none repeats
before its source is through. An epoch is as many places as the sources have rows, whatever the
weights.
Source: big_vision input_pipeline.py; its shuffle buffer mixes passes at their ends, ours does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Places whose sources are drawn at once, and blocks whose counts are.
_BLOCK, _GROUP = 1 << 16, 1 << 10
# Streams of random numbers that must not meet.
_ORDER, _COUNTS = 1, 2


class MixedOrder:
    """Finds the row of any place.

    Args:
        sizes: rows of each source, at least one.
        weights: part of each source, relative to the others.
        key: seed and stream of what is drawn.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], key: tuple[int, ...]
    ) -> None:
        self._sizes, self._key = tuple(sizes), key
        shares = np.asarray(weights, np.float64)
        self._shares = shares / shares.sum()
        # Rows of each source before every group; the counts of one group, the sources of one block.
        self._before = [np.zeros(len(sizes), np.int64)]
        self._counts: tuple[int, np.ndarray] | None = None
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None
        self._passes: dict[int, tuple[int, np.ndarray]] = {}

    def at(self, place: int) -> tuple[int, int]:
        """Number of the source and of its row at a place, counted from 0."""
        return self.visit(place)[:2]

    def visit(self, place: int) -> tuple[int, int, int]:
        """Number of the source, of its row, and of the pass that shows the row, from 0 on."""
        if len(self._sizes) == 1:
            return 0, self._row(0, place), place // self._sizes[0]
        block, index = divmod(place, _BLOCK)
        before, drawn = self._of_block(block)
        source = int(drawn[index])
        nth = int(before[source]) + int((drawn[:index] == source).sum())
        return source, self._row(source, nth), nth // self._sizes[source]

    def _of_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of each source before a block, and the source of each of its places."""
        if self._drawn is None or self._drawn[0] != block:
            group, index = divmod(block, _GROUP)
            while len(self._before) <= group:
                last = len(self._before) - 1
                self._before.append(self._before[last] + self._counts_of(last).sum(0))
            counts = self._counts_of(group)
            sources = np.arange(len(self._sizes), dtype=np.int16).repeat(counts[index])
            np.random.default_rng((*self._key, 0, block, _ORDER)).shuffle(sources)
            self._drawn = block, self._before[group] + counts[:index].sum(0), sources
        return self._drawn[1:]

    def _counts_of(self, group: int) -> np.ndarray:
        """How often each source stands in the blocks of a group, int64[_GROUP, sources]."""
        if self._counts is None or self._counts[0] != group:
            rng = np.random.default_rng((*self._key, 0, group, _COUNTS))
            self._counts = group, rng.multinomial(_BLOCK, self._shares, _GROUP)
        return self._counts[1]

    def _row(self, source: int, nth: int) -> int:
        number, index = divmod(nth, self._sizes[source])
        kept = self._passes.get(source)
        if kept is None or kept[0] != number:
            of_many = (*self._key, source + 1, number, 1)
            rng = np.random.default_rng((*self._key, number) if len(self._sizes) == 1 else of_many)
            kept = self._passes[source] = number, rng.permutation(self._sizes[source])
        return int(kept[1][index])
