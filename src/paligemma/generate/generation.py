"""Results of decoding: one step of a batch, and whole answers.

Axes: B batch, T answer tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.vocab import NUM_LOC


@dataclass(frozen=True, kw_only=True)
class Step:
    """One more token in every row that is still being written.

    Attributes:
        tokens: int64[B], 0 in rows that had ended before.
        logprobs: float32[B], log-softmax of the unmodified logits; 0 in rows that had ended before.
        active: bool[B], rows that wrote a token in this step, EOS included.
        finished: bool[B], rows that have written EOS, now or before.
        crowded: bool[B], rows that, now or before, would have chosen a token for which the bound
            left their grammar no room.
        loc_probs: row -> float32[1024], the probability of every location token, for the rows that
            record them and wrote one; None where no row records them.
    """

    index: int
    tokens: Tensor
    logprobs: Tensor
    active: Tensor
    finished: Tensor
    crowded: Tensor
    loc_probs: Mapping[int, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The answers to a batch.

    Attributes:
        ids: int64[B, T], EOS included, 0 after it.
        logprobs: float32[B, T], log-softmax of the unmodified logits (no temperature, filter, ban
            or grammar); 0 after EOS.
        scores: float32[B], the sum of `logprobs`; no length normalisation.
        lengths: int64[B], number of tokens, EOS included; 0 for rows that only pad the batch.
        finished: bool[B], whether the answer ends with EOS.
        cut: bool[B], True where a larger bound would have given another answer: it has no EOS, its
            grammar had no room for the token that the sampler chose, or a beam without EOS was
            still ahead.
        loc_probs: for each row float32[n, 1024], a line for each of the n location tokens in `ids`,
            in order; n is 0 in rows that do not record them. None where no row records them.
    """

    ids: Tensor
    logprobs: Tensor
    scores: Tensor
    lengths: Tensor
    finished: Tensor
    cut: Tensor
    loc_probs: tuple[Tensor, ...] | None = None

    def select(self, rows: Tensor) -> Generation:
        """The given rows, int64[B']."""
        chosen = {name: one[rows] for name, one in vars(self).items() if isinstance(one, Tensor)}
        locations = self.loc_probs and tuple(self.loc_probs[row] for row in rows.tolist())
        return Generation(**chosen, loc_probs=locations)


def collect(steps: Iterable[Step]) -> Generation:
    """Stack the steps of a stream.

    Raises:
        ConfigError: the model produced NaN, as float16 weights do when they overflow.
    """
    seen = list(steps)
    logprobs = torch.stack([step.logprobs for step in seen], dim=1)
    scores = logprobs.sum(dim=1)
    require_numbers(scores)
    lengths = torch.stack([step.active for step in seen]).sum(dim=0)
    last = seen[-1]
    return Generation(
        ids=torch.stack([step.tokens for step in seen], dim=1),
        logprobs=logprobs,
        scores=scores,
        lengths=lengths,
        finished=last.finished.clone(),
        cut=(lengths > 0) & (~last.finished | last.crowded),
        loc_probs=_collect_loc_probs(seen, logprobs),
    )


def last_of(steps: Generator[object, None, Generation]) -> Generation:
    """What a search returns after its last pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Generation, end.value)


NOT_NUMBERS = (
    "logits must be numbers, but the model produced NaN; paligemma doctor names weights that are "
    "not numbers, and float16 may overflow where float32 and bfloat16 do not"
)


def require_numbers(scores: Tensor) -> None:
    """Raise ConfigError where a score is NaN, as happens when activations overflow."""
    if bool(scores.isnan().any()):
        raise ConfigError(NOT_NUMBERS)


def _collect_loc_probs(seen: list[Step], logprobs: Tensor) -> tuple[Tensor, ...] | None:
    recorded = [step.loc_probs for step in seen if step.loc_probs is not None]
    if not recorded:
        return None
    lines: list[list[Tensor]] = [[] for _ in range(logprobs.shape[0])]
    for by_row in recorded:
        for row, probs in by_row.items():
            lines[row].append(probs)
    empty = logprobs.new_zeros((0, NUM_LOC))
    return tuple(torch.stack(of_row) if of_row else empty for of_row in lines)
