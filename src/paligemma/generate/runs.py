"""Chosen tokens on their way into the model, each in one pass with those that must follow it.

Where a grammar leaves a single token, that token is known before the model has read the one in
front of it. So the model reads a run of them at once:

    chosen            ymin xmin ymax xmax  cat   ;    _   ymin xmin
    passes of one     |----|----|----|----|----|----|----|----|
    passes of runs    |----|----|----|---------|---------|----|

A row that reports probabilities among the allowed tokens needs no logits for what must follow: its
tokens wait until there is a choice, and the end of an answer is not read at all. The other rows
read ahead, and keep the logits. Every choice is made by the logits that it would have had alone.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.generate.row_grammar import RowGrammar, merged
from paligemma.generate.rows import DecodeRow
from paligemma.model import KVCache, PaliGemmaModel

# Tokens that rows of more than one have together in a pass. More take no less time each: products
# of so many rows are bound by arithmetic, not by reading the weights.
MAX_TOKENS = 16


def logits_after(
    model: PaliGemmaModel,
    cache: KVCache,
    rows: Sequence[DecodeRow],
    tokens: Sequence[int],
    active: Sequence[bool],
) -> Tensor:
    """The logits that decide the next token of each row.

    Args:
        model: a model that `decodes_runs`.
        cache: has a row for each of `rows`.
        tokens: what was chosen last in each row.
        active: whether the answer goes on behind it.

    Returns:
        float32[B, V], without sense in rows that are not active; minus infinity may stand for what
        a row may not choose and does not weigh.
    """
    most = max(1, MAX_TOKENS // max(1, sum(active)))
    found: dict[int, Tensor] = {}
    reading: dict[int, list[int]] = {}
    for place, (row, token, goes_on) in enumerate(zip(rows, tokens, active, strict=True)):
        if not goes_on:
            continue
        if row.ahead:
            found[place] = row.ahead.popleft()
            continue
        row.unread.append(token)
        forced = _forced(row.grammar)
        if row.over_allowed and forced is not None and len(row.unread) < most:
            found[place] = torch.full((model.config.vocab.size,), -torch.inf, dtype=torch.float32)
            found[place][forced] = 0.0
        else:
            ahead = () if row.over_allowed else _must_follow(row.grammar)
            reading[place] = [*row.unread, *islice(ahead, most - 1)]
    if reading:
        logits = _read(model, cache, rows, reading)
        of_rows = logits.split([len(run) for run in reading.values()])
        for (place, run), of_row in zip(reading.items(), of_rows, strict=True):
            row = rows[place]
            found[place], *ahead = of_row[len(row.unread) - 1 :]
            row.ahead.extend(ahead)
            row.unread.clear()
            row.position += len(run)
        if len(logits) == len(reading) == len(rows):
            return logits  # one token of each row, and nothing to copy
    if not found:
        return torch.zeros(len(rows), model.config.vocab.size, dtype=torch.float32)
    if len(rows) == 1:
        return found[0][None]
    nothing = next(iter(found.values()))
    return torch.stack([found.get(place, nothing) for place in range(len(rows))])


def _read(
    model: PaliGemmaModel,
    cache: KVCache,
    rows: Sequence[DecodeRow],
    reading: dict[int, list[int]],
) -> Tensor:
    """Read tokens in one pass: float32[N, V], the logits after each, row by row."""
    ids = None
    if all(rows[place].over_allowed for place in reading):
        ids = _that_matter([rows[place].grammar for place in reading])
    run_of = [(place, k) for place, run in reading.items() for k in range(len(run))]
    return model.decode_runs(
        torch.tensor([reading[place][k] for place, k in run_of]),
        torch.tensor([place for place, _ in run_of]),
        torch.tensor([rows[place].position + k for place, k in run_of]),
        cache,
        ids,
    )


def _that_matter(grammars: Sequence[RowGrammar | None]) -> list[range] | None:
    """Ascending ranges of the ids that the next choices weigh; None for all."""
    try:
        return merged([one.ranges_with_ample_room for one in grammars if one is not None])
    except ConfigError:
        return None  # reported where the token is chosen


def _forced(grammar: RowGrammar | None) -> int | None:
    """The token that must be chosen next, or None."""
    try:
        return None if grammar is None else grammar.forced
    except ConfigError:
        return None  # reported where the token is chosen


def _must_follow(grammar: RowGrammar | None) -> Iterator[int]:
    """The tokens that must be chosen next and that the model will have to read."""
    while grammar is not None and grammar.room > 1:
        token = _forced(grammar)
        if token is None or token == grammar.eos:
            return
        yield token
        grammar = grammar.after(token)
