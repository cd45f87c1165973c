"""The rows of a batch while their answers are written.

Sampler, seed, bans, room and grammar belong to the row, so a row gets the answer that it would get
alone. `DecodeRows.choose` is the one place where logits become tokens; a stream and the queue both
decode through it.

Axes: B batch, V vocabulary.
Source: big_vision trainers/proj/paligemma/predict_fns.py, decode_with_logp.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate.constraints import Constraint
from paligemma.generate.options import DecodeOptions
from paligemma.generate.row_grammar import RowGrammar
from paligemma.generate.sampling import ChoosesAmong, places_of
from paligemma.vocab import NUM_LOC, Vocab

Key = TypeVar("Key")


@dataclass(kw_only=True, eq=False)
class DecodeRow:
    """One answer while it is written.

    Attributes:
        room: number of tokens that may still be written.
        grammar: what may follow the tokens written so far; None where anything may, and after EOS.
        position: rotary position of the first token that the model has not read.
        unread: tokens that are chosen and that the model has not read.
        ahead: float32[V] behind tokens that the model has read before they were chosen.
    """

    options: DecodeOptions
    generator: torch.Generator
    room: int
    grammar: RowGrammar | None
    position: int = 0
    unread: list[int] = field(default_factory=list)
    ahead: deque[Tensor] = field(default_factory=deque)

    @classmethod
    def begin(
        cls,
        options: DecodeOptions,
        constraint: Constraint | None,
        vocab: Vocab,
        device: torch.device,
    ) -> DecodeRow:
        """A row before its first token.

        Raises:
            ConfigError: the options do not fit the vocabulary, or the grammar does not fit the
                options.
        """
        options.check_vocab(vocab)
        grammar = None
        if constraint is not None:
            grammar = RowGrammar.begin(constraint, options, vocab)
        return cls(
            options=options,
            generator=torch.Generator(device=device).manual_seed(int(options.seed)),
            room=options.max_new_tokens,
            grammar=grammar,
        )

    @property
    def over_allowed(self) -> bool:
        """Whether its probabilities are now among the tokens that its grammar allows."""
        return self.grammar is not None and self.options.probabilities == "allowed"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The next token of every row.

    Attributes:
        tokens: int64[B], the padding id in rows that are not active.
        logprobs: float32[B], log-softmax of the unmodified logits; 0 in rows that are not active.
        crowded: bool[B], rows that would have chosen a token for which their grammar had no room.
        loc_probs: row -> float32[1024], the probability of every location token, for the rows that
            record them and chose one; None where no row records them.
    """

    tokens: Tensor
    logprobs: Tensor
    crowded: Tensor
    loc_probs: Mapping[int, Tensor] | None


class DecodeRows:
    """Rows that are decoded side by side."""

    def __init__(self, rows: Sequence[DecodeRow], vocab: Vocab, device: torch.device) -> None:
        self._rows, self._vocab = rows, vocab
        self._by_sampler = [
            (sampler, torch.tensor(places, device=device), [rows[k].generator for k in places])
            for sampler, places in _grouped([row.options.sampler for row in rows])
        ]
        self._by_ban = [
            (torch.tensor(places, device=device)[:, None], torch.tensor(ids, device=device))
            for ids, places in _grouped([row.options.banned_ids for row in rows])
            if ids
        ]
        self._choose_among_few = [isinstance(row.options.sampler, ChoosesAmong) for row in rows]
        recording = [row.options.record_loc_probs for row in rows]
        self._recording = torch.tensor(recording, device=device) if any(recording) else None

    def choose(
        self, logits: Tensor, active: Tensor, *, faults: dict[int, str] | None = None
    ) -> Choice:
        """Choose one more token in every row.

        Args:
            logits: float32[B, V].
            active: bool[B], rows whose answers go on. The others choose padding.
            faults: takes row -> what is wrong with it, in the place of an error; what such a row
                chooses is without sense.

        Raises:
            ConfigError: the banned ids leave a grammar nothing to choose, without `faults`.
        """
        if logits.is_cpu:  # Elsewhere the host would wait for the device.
            going = active.tolist()
            if all(
                few and row.grammar is not None
                for row, few, goes_on in zip(self._rows, self._choose_among_few, going, strict=True)
                if goes_on
            ):
                return self._choose_among_allowed(logits, going, faults)
        has_grammar = any(row.grammar is not None for row in self._rows)
        choosable = logits.clone() if has_grammar or self._by_ban else logits
        for places, ids in self._by_ban:
            choosable[places, ids] = -torch.inf
        crowded = torch.zeros_like(active)
        over_allowed: dict[int, Sequence[range]] = {}
        if has_grammar:
            for place, row in enumerate(self._rows):
                try:
                    if row.grammar is not None:
                        crowded[place] = _apply_grammar(row, row.grammar, choosable[place])
                        if row.over_allowed:
                            over_allowed[place] = row.grammar.ranges
                except ConfigError as error:
                    if faults is None:
                        raise
                    faults[place], row.grammar = str(error), None
        tokens = torch.where(active, self._sample(choosable), self._vocab.pad)
        if has_grammar:
            for row, token in zip(self._rows, tokens.tolist(), strict=True):
                row.grammar = row.grammar and row.grammar.after(token)
        for row in self._rows:
            row.room -= 1
        logprobs = _logprobs(logits, choosable, over_allowed)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        return Choice(
            tokens=tokens,
            logprobs=torch.where(active, chosen, 0.0),
            crowded=crowded & active,
            loc_probs=self._loc_probs(logprobs, tokens, active),
        )

    def _choose_among_allowed(
        self, logits: Tensor, going: Sequence[bool], faults: dict[int, str] | None
    ) -> Choice:
        """The same as by whole rows of logits, from those of the allowed tokens alone."""
        num_rows, vocab = len(going), self._vocab
        tokens, crowded = [vocab.pad] * num_rows, [False] * num_rows
        loc_probs: dict[int, Tensor] = {}
        logprobs = torch.zeros(num_rows, dtype=torch.float32)
        over_all = None
        if any(going[place] and not row.over_allowed for place, row in enumerate(self._rows)):
            over_all = logits.log_softmax(dim=-1)
        for place, row in enumerate(self._rows):
            row.room -= 1
            if not going[place] or row.grammar is None:
                continue
            try:
                ids, ample = row.grammar.ranges, row.grammar.ample_ranges
            except ConfigError as error:
                if faults is None:
                    raise
                faults[place], row.grammar = str(error), None
                continue
            values = _values(logits[place], ids)
            chosen = row.options.sampler.among(values, ids)  # type: ignore[attr-defined]
            token = tokens[place] = _id_at(ids, chosen)
            if ample is not None:
                wished = row.options.sampler.among(_values(logits[place], ample), ample)  # type: ignore[attr-defined]
                crowded[place] = not row.grammar.allowed[0][_id_at(ample, wished)]
            is_recorded = row.options.record_loc_probs and vocab.is_loc(token)
            if row.over_allowed:
                own = values.log_softmax(dim=0)
                logprobs[place] = own[chosen]
                if is_recorded:
                    span, bins = places_of(ids, vocab.loc0, NUM_LOC)
                    loc_probs[place] = own.new_zeros(NUM_LOC)
                    loc_probs[place][bins] = own[span].exp()
            elif over_all is not None:
                logprobs[place] = over_all[place, token]
                if is_recorded:
                    loc_probs[place] = over_all[place, vocab.loc0 : vocab.loc0 + NUM_LOC].exp()
            row.grammar = row.grammar.after(token)
        return Choice(
            tokens=torch.tensor(tokens),
            logprobs=logprobs,
            crowded=torch.tensor(crowded),
            loc_probs=None if self._recording is None else loc_probs,
        )

    def _sample(self, choosable: Tensor) -> Tensor:
        """float32[B, V] -> int64[B]; rows with equal samplers share one call."""
        if len(self._by_sampler) == 1:
            sampler, _, generators = self._by_sampler[0]
            return sampler(choosable, generators)
        tokens = torch.empty(len(self._rows), dtype=torch.long, device=choosable.device)
        for sampler, places, generators in self._by_sampler:
            tokens[places] = sampler(choosable[places], generators)
        return tokens

    def _loc_probs(
        self, logprobs: Tensor, tokens: Tensor, active: Tensor
    ) -> dict[int, Tensor] | None:
        if self._recording is None:
            return None
        loc0 = self._vocab.loc0
        is_loc = active & self._recording & (tokens >= loc0) & (tokens < loc0 + NUM_LOC)
        places = is_loc.nonzero()[:, 0]
        probs = logprobs[places, loc0 : loc0 + NUM_LOC].exp()
        return dict(zip(places.tolist(), probs, strict=True))


def begin_rows(
    options: Sequence[DecodeOptions],
    constraint: Constraint | Sequence[Constraint | None] | None,
    real: Tensor | None,
    vocab: Vocab,
    device: torch.device,
) -> list[DecodeRow]:
    """The rows of a batch before their first tokens.

    Args:
        constraint: a grammar for every row, or one for each row; None leaves the model free.
        real: bool[B], False for rows that only pad the batch; these need no grammar. None where no
            row has one.

    Raises:
        ConfigError: another number of grammars than of rows, or as in `DecodeRow.begin`.
    """
    per_row = list(constraint) if isinstance(constraint, Sequence) else [constraint] * len(options)
    if len(per_row) != len(options):
        raise ConfigError(
            f"pass one constraint, or one for each of the {len(options)} rows, got {len(per_row)}"
        )
    is_real = [True] * len(options) if real is None else real.tolist()
    return [
        DecodeRow.begin(own, grammar if real else None, vocab, device)
        for own, grammar, real in zip(options, per_row, is_real, strict=True)
    ]


def _values(logits: Tensor, ids: Sequence[range]) -> Tensor:
    """float32[V] -> float32[N], the logits of some ids."""
    parts = [logits[part.start : part.stop] for part in ids]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _id_at(ids: Sequence[range], place: int) -> int:
    """The id at a place among ascending ranges."""
    for part in ids:
        if place < len(part):
            return part[place]
        place -= len(part)
    raise IndexError(place)


def _apply_grammar(row: DecodeRow, grammar: RowGrammar, logits: Tensor) -> Tensor | bool:
    """Forbid in float32[V], in place, what the grammar of a row does not allow.

    Returns:
        Whether the row would have chosen a token for which there is no room.
    """
    allowed, with_ample_room = grammar.allowed
    crowded: Tensor | bool = False
    if with_ample_room is not None:
        wished = logits.masked_fill(~with_ample_room.to(logits.device), -torch.inf)
        # A copy of the generator draws what the generator itself would draw next.
        copy = torch.Generator(device=logits.device)
        copy.set_state(row.generator.get_state())
        crowded = ~allowed.to(logits.device)[row.options.sampler(wished[None], [copy])[0]]
    start = 0
    for part in grammar.ranges:
        logits[start : part.start] = -torch.inf
        start = part.stop
    logits[start:] = -torch.inf
    return crowded


def _logprobs(
    logits: Tensor, choosable: Tensor, over_allowed: Mapping[int, Sequence[range]]
) -> Tensor:
    """Log-probabilities float32[B, V] of all tokens; in some rows, among the allowed ones alone.

    Args:
        over_allowed: row -> what it may choose; a sum over so few is fast.
    """
    some_over_all = len(over_allowed) < len(logits)
    logprobs = logits.log_softmax(dim=-1) if some_over_all else torch.empty_like(logits)
    for place, ranges in over_allowed.items():
        parts = [choosable[place, part.start : part.stop] for part in ranges]
        found = torch.cat(parts).log_softmax(dim=0).split([len(part) for part in ranges])
        logprobs[place] = -torch.inf
        for part, values in zip(ranges, found, strict=True):
            logprobs[place, part.start : part.stop] = values
    return logprobs


def _grouped(keys: Sequence[Key]) -> list[tuple[Key, list[int]]]:
    """The places of each distinct key. A sampler of the user's need not be hashable."""
    groups: list[tuple[Key, list[int]]] = []
    for place, key in enumerate(keys):
        for seen, places in groups:
            if seen == key:
                places.append(place)
                break
        else:
            groups.append((key, [place]))
    return groups
