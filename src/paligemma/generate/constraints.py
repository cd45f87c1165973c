"""Grammars: automata that restrict the next token.

A constraint is an automaton on token ids whose states are plain values. It gives the tokens that
may follow a state, and the state after a token. It starts nothing that the length bound would cut;
`Generation.cut` marks the answers in which that changed a choice. The reported log-probabilities
remain those of the model without a grammar.

Axes: V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate.label_text import FreeText, LabelText, TokenTrie
from paligemma.vocab import NUM_LOC, NUM_SEG, SEG_PER_MASK, Vocab

MAX_OBJECTS = 1024
MAX_GRAMMAR_TOKENS = 1_000_000


class Constraint(Protocol):
    """An automaton over the tokens of one answer."""

    @property
    def min_tokens(self) -> int:
        """Number of tokens of the shortest answer, EOS included."""

    def start(self) -> Hashable:
        """The state before the first token."""

    def allowed(self, state: Any, room: int) -> Tensor:
        """Tokens that may follow: bool[V] on the CPU, never empty, which the caller may change.

        Args:
            room: number of tokens that may still be written, the next one included.
        """

    def ample_room(self, state: Any) -> int:
        """A room in which nothing is forbidden for lack of room: with any larger one, `allowed`
        gives the same tokens."""

    def advance(self, state: Any, token: int) -> Hashable:
        """The state after an allowed token other than EOS."""


@dataclass(frozen=True, kw_only=True)
class ClosedSet:
    """The answer is one of the given token sequences, followed by EOS.

    Attributes:
        answers: token ids of each answer, without EOS.
    """

    vocab: Vocab
    answers: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        _check_sequences(self.answers, self.vocab, "answer", with_objects=True)
        if not self.answers or not all(self.answers):
            raise ConfigError(
                "a closed set needs at least one answer and none may be empty, "
                f"got {self.answers!r}"
            )

    @cached_property
    def _trie(self) -> TokenTrie:
        return TokenTrie(self.answers)

    @property
    def min_tokens(self) -> int:
        return self._trie.shortest + 1

    def start(self) -> int:
        return 0

    def allowed(self, state: int, room: int) -> Tensor:
        mask = torch.zeros(self.vocab.size, dtype=torch.bool)
        self._trie.allow(mask, state, room=room, end=1, box=math.inf)
        mask[self.vocab.eos] = self._trie.ends(state)
        return mask

    def ample_room(self, state: int) -> int:
        return self._trie.longest + 1

    def advance(self, state: int, token: int) -> int:
        return self._trie.advance(state, token)


_Bins = tuple[int, ...]


@dataclass(frozen=True)
class _ObjectState:
    """Objects begun, bins and mask codes of the current one, and the state of its label.

    Attributes:
        label: the tokens that `text` stands for, a separator included.
        before: bins and label of the complete objects, where none may be repeated.
    """

    num_objects: int = 0
    bins: _Bins = ()
    num_codes: int = 0
    text: int = 0
    label: tuple[int, ...] = ()
    before: frozenset[tuple[_Bins, tuple[int, ...]]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ObjectGrammar:
    """Objects as the model was taught to write them: `<loc>*4 [<seg>*16] label ; <loc>*4 ...`, then
    EOS.

    Boxes are upright and not empty: ymin < ymax and xmin < xmax.

    Attributes:
        labels: token ids of each label as it follows a box (with its leading space); None for free
            text; () for no label, as in referring-expression outputs.
        separator: token ids between two objects, " ; " in the released vocabulary.
        no_repeats: whether a box may stand only once with each label.
        min_objects: fewest objects; 0 lets the model answer that there is nothing.
    """

    vocab: Vocab
    labels: Sequence[Sequence[int]] | None
    separator: Sequence[int]
    with_masks: bool = False
    max_objects: int = 100
    min_objects: int = 0
    max_label_tokens: int = 16
    no_repeats: bool = False

    def __post_init__(self) -> None:
        if not self.vocab.has_objects:
            raise ConfigError(
                "an object grammar needs location tokens, and this model's vocabulary has none"
            )
        if (
            not 1 <= self.max_objects <= MAX_OBJECTS
            or not 0 <= self.min_objects <= self.max_objects
        ):
            raise ConfigError(
                "the numbers of objects must satisfy 0 <= min_objects <= max_objects and "
                f"1 <= max_objects <= {MAX_OBJECTS}, got {self.min_objects} and {self.max_objects}"
            )
        if self.max_label_tokens < 1:
            raise ConfigError(f"max_label_tokens must be at least 1, got {self.max_label_tokens}")
        if self.no_repeats and self.labels is None:
            raise ConfigError("objects without repeats need a list of labels, got free text")
        if not self.separator:
            raise ConfigError("the separator must hold at least one token, got none")
        _check_sequences([self.separator], self.vocab, "separator", with_objects=False)
        _check_sequences(self.labels or (), self.vocab, "label", with_objects=False)
        if self.labels and not all(self.labels):
            raise ConfigError(
                f"no label may be empty, got {self.labels!r}; pass () for objects without labels"
            )

    @cached_property
    def _text(self) -> LabelText:
        if self.labels is None:
            return FreeText(self.vocab, self.separator, self.max_label_tokens)
        return TokenTrie(self.labels or [()], self.separator)

    def _text_of(self, state: _ObjectState) -> LabelText:
        """The labels that the box of a state may have."""
        had = {label for bins, label in state.before if bins == state.bins}
        if not had:
            return self._text
        return TokenTrie([one for one in self._distinct if one not in had], self.separator)

    @cached_property
    def _distinct(self) -> list[tuple[int, ...]]:
        return list(dict.fromkeys(map(tuple, self.labels or [()])))

    @property
    def min_tokens(self) -> int:
        return 1 if self.min_objects == 0 else self._needed_from_box(1)

    def start(self) -> _ObjectState:
        return _ObjectState()

    def allowed(self, state: _ObjectState, room: int) -> Tensor:
        vocab = self.vocab
        mask = torch.zeros(vocab.size, dtype=torch.bool)
        if 0 < len(state.bins) < 4:
            self._allow_coordinate(mask, state.bins, state.before)
        elif state.bins and self.with_masks and state.num_codes < SEG_PER_MASK:
            mask[vocab.seg0 : vocab.seg0 + NUM_SEG] = True
        else:
            self._allow_between_boxes(mask, state, room)
        return mask

    def ample_room(self, state: _ObjectState) -> int:
        # The longest way from here: a whole label, a separator, and another box or the end.
        more = state.num_objects < self.max_objects
        box = self._needed_from_box(state.num_objects + 1) if more else 1
        return self._text.longest + len(self.separator) + box

    def advance(self, state: _ObjectState, token: int) -> _ObjectState:
        if self.vocab.is_seg(token):
            return replace(state, num_codes=state.num_codes + 1)
        if not self.vocab.is_loc(token):
            text = self._text_of(state).advance(state.text, token)
            return replace(state, text=text, label=(*state.label, token))
        position = token - self.vocab.loc0
        if len(state.bins) % 4:
            return replace(state, bins=(*state.bins, position))
        before = state.before
        if self.no_repeats and state.bins:
            before |= {(state.bins, state.label[: -len(self.separator)])}
        return _ObjectState(num_objects=state.num_objects + 1, bins=(position,), before=before)

    def _allow_between_boxes(self, mask: Tensor, state: _ObjectState, room: int) -> None:
        """After a complete box, or before the first."""
        may_end = state.num_objects >= self.min_objects
        more = state.num_objects < self.max_objects
        box = self._needed_from_box(state.num_objects + 1) if more else math.inf
        if state.num_objects == 0:
            opens, ends = True, may_end
        else:
            text = self._text_of(state)
            opens = text.opens(state.text)
            ends = may_end and text.ends(state.text)
            end = 1 if may_end else math.inf
            text.allow(mask, state.text, room=room, end=end, box=box)
        mask[self.vocab.eos] = ends
        if opens and box <= room:
            self._allow_coordinate(mask, (), state.before)

    def _allow_coordinate(
        self, mask: Tensor, bins: _Bins, before: Collection[tuple[_Bins, tuple[int, ...]]]
    ) -> None:
        """The next of ymin, xmin, ymax, xmax: a maximum lies beyond its minimum, and a minimum
        leaves room for that, and for an object that does not stand there yet."""
        if len(bins) < 2:
            lowest, highest = 0, NUM_LOC - 2
        else:
            lowest, highest = bins[len(bins) - 2] + 1, NUM_LOC - 1
        mask[self.vocab.loc0 + lowest : self.vocab.loc0 + highest + 1] = True
        had = Counter(box[: len(bins) + 1] for box, _ in before if box[: len(bins)] == bins)
        for begun, number in had.items():
            # Boxes that begin so: the minima to come are 0 to 1022, each maximum lies beyond.
            rest = [NUM_LOC - 1 - low for low in begun[max(0, len(begun) - 2) : 2]]
            if len(begun) > 1 and number == math.prod(rest) * len(self._distinct):
                mask[self.vocab.loc0 + begun[-1]] = False

    def _needed_from_box(self, number: int) -> int:
        """Fewest tokens to a complete answer when object `number` is about to begin."""
        # Of labels that may not be repeated only the longest may be left.
        label = self._text.longest if self.no_repeats else self._text.shortest
        one = 4 + SEG_PER_MASK * self.with_masks + label
        further = max(0, self.min_objects - number)
        return one + further * (len(self.separator) + one) + 1


def _check_sequences(
    sequences: Sequence[Sequence[int]], vocab: Vocab, what: str, *, with_objects: bool
) -> None:
    num_tokens = sum(len(sequence) for sequence in sequences)
    if num_tokens > MAX_GRAMMAR_TOKENS:
        raise ConfigError(
            f"the {what}s of a grammar may hold {MAX_GRAMMAR_TOKENS} tokens in all, "
            f"got {num_tokens}"
        )
    special = {vocab.pad, vocab.eos, vocab.bos}
    for sequence in sequences:
        for token in sequence:
            is_object = vocab.is_loc(token) or vocab.is_seg(token)
            if not 0 <= token < vocab.size or token in special or (is_object and not with_objects):
                raise ConfigError(
                    f"a {what} must hold ordinary token ids below {vocab.size}, "
                    f"got {token} in {list(sequence)}"
                )
