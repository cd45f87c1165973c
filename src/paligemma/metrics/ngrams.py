"""Counts of n-grams of many texts at once, as arrays."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

MAX_ORDER = 4


@dataclass(frozen=True, kw_only=True)
class NGrams:
    """All n-grams of one order, a row for each text and kind.

    Attributes:
        text: int64[R], number of the text, ascending.
        kind: int64[R], number of the n-gram, 0 to `num_kinds` - 1; ascending within a text.
        count: int64[R], occurrences in the text, at least 1.
        totals: int64[T], number of n-grams of each text.
    """

    text: np.ndarray
    kind: np.ndarray
    count: np.ndarray
    num_kinds: int
    totals: np.ndarray

    def find(self, text: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """Find the rows of texts and kinds, -1 where a text lacks the n-gram: int64 like both."""
        if not len(self.text):
            return np.full(len(text), -1)
        wanted = text * self.num_kinds + kind
        keys = self.text * self.num_kinds + self.kind
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, place, -1)


def count_ngrams(texts: Sequence[str], *, max_order: int = MAX_ORDER) -> list[NGrams]:
    """Count n-grams of orders 1 to `max_order`; white space separates the tokens of a text."""
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__
    split = [text.split() for text in texts]
    tokens = np.fromiter(map(ids.__getitem__, chain.from_iterable(split)), np.int64)
    lengths = np.fromiter(map(len, split), np.int64, len(split))
    text_of = np.repeat(np.arange(len(split)), lengths)
    first_of = np.repeat(np.cumsum(lengths) - lengths, lengths)
    left = first_of + np.repeat(lengths, lengths) - np.arange(len(tokens))
    counted = []
    kinds, num_kinds = tokens, max(len(ids), 1)
    starts = np.arange(len(tokens))
    for order in range(1, max_order + 1):
        if order > 1:
            # An n-gram is the one before it and one more token.
            fits = left[starts] >= order
            starts, kinds = starts[fits], kinds[fits]
            longer = kinds * max(len(ids), 1) + tokens[starts + order - 1]
            different, kinds = np.unique(longer, return_inverse=True)
            num_kinds = max(len(different), 1)
        counted.append(_count(text_of[starts], kinds, num_kinds, len(split)))
    return counted


def _count(text: np.ndarray, kind: np.ndarray, num_kinds: int, num_texts: int) -> NGrams:
    keys, count = np.unique(text * num_kinds + kind, return_counts=True)
    return NGrams(
        text=keys // num_kinds,
        kind=keys % num_kinds,
        count=count,
        num_kinds=num_kinds,
        totals=np.bincount(text, minlength=num_texts),
    )
