"""A grammar at work on one answer: what may follow, as masks and as ranges of ids.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate.constraints import Constraint
from paligemma.generate.options import DecodeOptions
from paligemma.vocab import Vocab


@dataclass(frozen=True, kw_only=True)
class RowGrammar:
    """A constraint at work on one answer, before one of its tokens.

    Attributes:
        banned_ids: ids that are never chosen, whatever the automaton allows.
        room: number of tokens that may still be written, the next one included.
    """

    constraint: Constraint
    state: Any
    banned_ids: list[int]
    eos: int
    room: int

    @classmethod
    def begin(cls, constraint: Constraint, options: DecodeOptions, vocab: Vocab) -> RowGrammar:
        """The grammar before the first token.

        Raises:
            ConfigError: EOS is banned, or the shortest answer is longer than the bound.
        """
        if vocab.eos in options.banned_ids:
            raise ConfigError(
                f"a grammar ends with EOS, so id {vocab.eos} must not be banned; "
                "drop the ban or the grammar"
            )
        if constraint.min_tokens > options.max_new_tokens:
            raise ConfigError(
                f"max_new_tokens must be at least {constraint.min_tokens} for this grammar, "
                f"got {options.max_new_tokens}"
            )
        return cls(
            constraint=constraint,
            state=constraint.start(),
            banned_ids=list(options.banned_ids),
            eos=vocab.eos,
            room=options.max_new_tokens,
        )

    @cached_property
    def allowed(self) -> tuple[Tensor, Tensor | None]:
        """Tokens that may follow in the room that is left.

        bool[V] on the CPU, never empty; and the tokens that might follow with ample room, None
        where these are the same.

        Raises:
            ConfigError: the banned ids leave nothing to choose.
        """
        allowed = self._allowed(self.room)
        ample_room = self.constraint.ample_room(self.state)
        if self.room >= ample_room:
            return allowed, None
        with_ample_room = self._allowed(ample_room)
        same = np.array_equal(allowed.numpy(), with_ample_room.numpy())
        return allowed, None if same else with_ample_room

    @cached_property
    def ranges(self) -> list[range]:
        """The tokens that may follow as ascending ranges of ids."""
        return _ranges(self.allowed[0])

    @cached_property
    def forced(self) -> int | None:
        """The token that must follow in any room; None where there is a choice."""
        one = len(self.ranges) == 1 and len(self.ranges[0]) == 1 and self.allowed[1] is None
        return self.ranges[0].start if one else None

    @cached_property
    def ample_ranges(self) -> list[range] | None:
        """Those that might follow with ample room; None where these are the same."""
        return None if self.allowed[1] is None else _ranges(self.allowed[1])

    @cached_property
    def ranges_with_ample_room(self) -> list[range]:
        """The tokens whose logits decide what follows, and whether a larger room changed that."""
        ample = self.ample_ranges
        return self.ranges if ample is None else merged([self.ranges, ample])

    def _allowed(self, room: int) -> Tensor:
        allowed = self.constraint.allowed(self.state, room)
        if self.banned_ids:
            allowed[self.banned_ids] = False
            if not bool(allowed.any()):
                raise ConfigError(
                    f"banned ids {self.banned_ids} forbid every token that the grammar allows; "
                    "ban fewer"
                )
        return allowed

    def after(self, token: int) -> RowGrammar | None:
        """The grammar after the chosen token; None after EOS, when the answer is complete."""
        if token == self.eos:
            return None
        # Kept, as a run of forced tokens is looked up before they are chosen.
        if token not in self._after:
            state = self.constraint.advance(self.state, token)
            self._after[token] = replace(self, state=state, room=self.room - 1)
        return self._after[token]

    @cached_property
    def _after(self) -> dict[int, RowGrammar]:
        return {}


def merged(of_rows: Iterable[Sequence[range]]) -> list[range]:
    """Ascending ranges of the ids that are in the ranges of any row."""
    found: list[range] = []
    for part in sorted((part for ranges in of_rows for part in ranges), key=lambda one: one.start):
        if found and part.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, part.stop))
        else:
            found.append(part)
    return found


def _ranges(mask: Tensor) -> list[range]:
    """Ascending ranges of the places where bool[V] is True."""
    # NumPy, as torch takes ten times as long to find few edges among many places.
    inside = mask.numpy()
    edges = (np.flatnonzero(inside[1:] != inside[:-1]) + 1).tolist()
    if inside[0]:
        edges.insert(0, 0)
    if inside[-1]:
        edges.append(len(inside))
    return [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
