"""Which row of which source stands at a place of a mixture: drawn from seed and place alone.

A source is drawn for every place by the weights, independently; the rows of each source follow one
another in passes of their own, each in a new order, so that none repeats before its source is
through. An epoch is as many places as the sources have rows, whatever the weights.
Source: big_vision input_pipeline.py; its shuffle buffer mixes passes at their ends, ours does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Places that are drawn at once; their counts are kept, 8 bytes a source.
_BLOCK = 1 << 16


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
        self._before = [np.zeros(len(sizes), np.int64)]
        self._drawn: tuple[int, np.ndarray] | None = None
        self._passes: dict[int, tuple[int, np.ndarray]] = {}

    def at(self, place: int) -> tuple[int, int]:
        """Number of the source and of its row at a place, counted from 0."""
        if len(self._sizes) == 1:
            return 0, self._row(0, place)
        block, index = divmod(place, _BLOCK)
        while len(self._before) <= block:
            last = len(self._before) - 1
            counts = np.bincount(self._draw(last), minlength=len(self._sizes))
            self._before.append(self._before[last] + counts)
        drawn = self._draw(block)
        source = int(drawn[index])
        nth = int(self._before[block][source]) + int((drawn[:index] == source).sum())
        return source, self._row(source, nth)

    def _draw(self, block: int) -> np.ndarray:
        if self._drawn is None or self._drawn[0] != block:
            rng = np.random.default_rng((*self._key, 0, block, 1))
            found = rng.choice(len(self._sizes), _BLOCK, p=self._shares).astype(np.int16)
            self._drawn = block, found
        return self._drawn[1]

    def _row(self, source: int, nth: int) -> int:
        number, index = divmod(nth, self._sizes[source])
        kept = self._passes.get(source)
        if kept is None or kept[0] != number:
            of_many = (*self._key, source + 1, number, 1)
            rng = np.random.default_rng((*self._key, number) if len(self._sizes) == 1 else of_many)
            kept = self._passes[source] = number, rng.permutation(self._sizes[source])
        return int(kept[1][index])
