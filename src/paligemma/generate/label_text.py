"""The text between two boxes, or a whole answer, as small automata over token ids.

A state is a whole number, 0 at the start. Each automaton counts the tokens that it still needs, so
that a grammar never starts what the length bound would cut. A state may have two marks: `ends` (EOS
may follow) and `opens` (the separator is complete, so that a box must follow). `shortest` is the
number of tokens of the shortest label, `longest` that of the longest one that a token can make
unavoidable. `allow` marks in bool[V] the text tokens that may follow:

    room    tokens that may still be written, the next one included
    end     tokens needed once `ends` holds: 1, or infinity where the answer may not end yet
    box     tokens needed once `opens` holds; infinity where no further box may follow
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from paligemma.vocab import NUM_LOC, NUM_SEG, Vocab


class TokenTrie:
    """A set of token sequences sharing their beginnings; a state is a node, 0 the root."""

    def __init__(self, sequences: Collection[Sequence[int]], separator: Sequence[int] = ()) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._ends: set[int] = set()
        self._opens: set[int] = set()
        for sequence in sequences:
            self._ends.add(self._insert(sequence))
            if separator:
                self._opens.add(self._insert([*sequence, *separator]))
        self.shortest = min(len(sequence) for sequence in sequences)
        self.longest = max(len(sequence) for sequence in sequences)
        self._to_end = self._distances(self._ends)
        self._to_open = self._distances(self._opens)

    def advance(self, state: int, token: int) -> int:
        return self._children[state][token]

    def ends(self, state: int) -> bool:
        return state in self._ends

    def opens(self, state: int) -> bool:
        return state in self._opens

    def allow(self, mask: Tensor, state: int, *, room: float, end: float, box: float) -> None:
        for token, child in self._children[state].items():
            if 1 + min(self._to_end[child] + end, self._to_open[child] + box) <= room:
                mask[token] = True

    def _insert(self, sequence: Sequence[int]) -> int:
        node = 0
        for token in sequence:
            if token not in self._children[node]:
                self._children[node][token] = len(self._children)
                self._children.append({})
            node = self._children[node][token]
        return node

    def _distances(self, targets: set[int]) -> list[float]:
        """Fewest tokens from each node down to a target."""
        distances = [math.inf] * len(self._children)
        # A child is always made after its parent, so one pass from the back suffices.
        for node in reversed(range(len(self._children))):
            below = [1 + distances[child] for child in self._children[node].values()]
            distances[node] = 0 if node in targets else min(below, default=math.inf)
        return distances


class FreeText:
    """Any label of one or more text tokens; the separator ends it.

    The label may end after any token, so no token makes more than one unavoidable (`longest`).

    A state is `written * (len(separator) + 1) + matched`: label tokens so far, and how many of the
    last ones are the beginning of the separator.
    """

    shortest = longest = 1

    def __init__(self, vocab: Vocab, separator: Sequence[int], max_tokens: int) -> None:
        self._separator = tuple(separator)
        self._max_tokens = max_tokens
        self._base = len(self._separator) + 1
        self._text = torch.ones(vocab.size, dtype=torch.bool)
        self._text[[vocab.pad, vocab.eos, vocab.bos]] = False
        self._text[vocab.loc0 : vocab.loc0 + NUM_LOC] = False
        self._text[vocab.seg0 : vocab.seg0 + NUM_SEG] = False
        self._separator_ids = sorted(set(self._separator))

    def advance(self, state: int, token: int) -> int:
        written, matched = divmod(state, self._base)
        return (written + 1) * self._base + self._match(matched, token)

    def ends(self, state: int) -> bool:
        written, matched = divmod(state, self._base)
        return written > 0 and matched == 0

    def opens(self, state: int) -> bool:
        return state % self._base == len(self._separator)

    def allow(self, mask: Tensor, state: int, *, room: float, end: float, box: float) -> None:
        if self.opens(state):
            return
        written, matched = divmod(state, self._base)
        if written < self._max_tokens and 1 + self._needed(written + 1, 0, end, box) <= room:
            mask |= self._text
        for token in self._separator_ids:
            goes_on = written < self._max_tokens or token == self._separator[matched]
            child = divmod(self.advance(state, token), self._base)
            mask[token] = goes_on and 1 + self._needed(*child, end, box) <= room

    def _needed(self, written: int, matched: int, end: float, box: float) -> float:
        """Fewest tokens to a complete answer."""
        rest = len(self._separator) - matched
        needed = math.inf
        if written > matched:  # the label before the separator is not empty
            needed = rest + box
        if rest and matched == 0 and written > 0:
            needed = min(needed, end)
        elif rest and written < self._max_tokens:
            needed = min(needed, 1 + end)
        return needed

    def _match(self, matched: int, token: int) -> int:
        """Length of the longest beginning of the separator that the text now ends with."""
        tail = (*self._separator[:matched], token)
        for length in range(min(len(tail), len(self._separator)), 0, -1):
            if tail[-length:] == self._separator[:length]:
                return length
        return 0


LabelText = TokenTrie | FreeText
