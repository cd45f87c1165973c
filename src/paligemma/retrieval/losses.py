"""Losses by which a model learns to place a page near the queries that it answers.

A query's score of a page is the sum, over its vectors, of the largest product with a vector of the
page (late interaction). Only real vectors are compared, so no padding can win a maximum.

Axes: Q queries, P pages, N vectors of one, D width of a vector, K hard negatives of a query.
Source: ColPali arXiv 2407.01449, section 4.1; colpali_engine/loss/late_interaction_losses.py;
GradCache arXiv 2101.06983.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paligemma.errors import ConfigError

# What is compared with what: the right page with all others of the batch, or with the hardest one.
KINDS = ("contrastive", "pairwise")
# What a score is divided by: the number of the query's vectors, or nothing.
NORMALISATIONS = ("length", "none")
_TEMPERATURES = {"contrastive": 0.02, "pairwise": 1.0}


@dataclass(frozen=True, kw_only=True)
class PairLossConfig:
    """How scores become a loss.

    Attributes:
        kind: one of `KINDS`. "contrastive" is the cross-entropy of the right page among all pages
            of the batch, "pairwise" softplus(hardest wrong page - right page).
        temperature: divisor of the scores; None takes 0.02 for "contrastive" and 1 for "pairwise".
        normalisation: one of `NORMALISATIONS`. ColPali v1.0 to v1.3 were trained with "none".
        negatives_weight: share of hard negatives in the loss, where a query has some; the rest is
            the loss among the pages of the batch.
        smooth_max: tau of tau * logsumexp(x / tau) in the place of the maximum over a page's
            vectors; None takes the maximum.
        suspect_above: a wrong page of the batch whose score exceeds this share of the right page's
            may be right as well, so its score is halved; None trusts every pair.

    Raises:
        ConfigError: a name is unknown or a number out of its range.
    """

    kind: str = "pairwise"
    temperature: float | None = None
    normalisation: str = "length"
    negatives_weight: float = 0.5
    smooth_max: float | None = None
    suspect_above: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("normalisation", self.normalisation, NORMALISATIONS),
        ):
            if value not in known:
                raise ConfigError(
                    f"the {name} of a loss is one of {', '.join(known)}, got {value!r:.80}"
                )
        for name in ("temperature", "smooth_max", "suspect_above"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {number}")
        if not 0 <= self.negatives_weight <= 1:
            raise ConfigError(f"negatives_weight must lie in [0, 1], got {self.negatives_weight}")

    @property
    def divisor(self) -> float:
        """The temperature, with the default resolved."""
        return _TEMPERATURES[self.kind] if self.temperature is None else self.temperature


@dataclass(frozen=True)
class VectorRows:
    """Vectors of several queries or pages, padded to the longest.

    Attributes:
        values: float[B, N, D].
        valid: bool[B, N], False where a row is padding.
    """

    values: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def real(self) -> list[Tensor]:
        """The vectors of each row without padding, float[N, D] each."""
        return [values[valid] for values, valid in zip(self.values, self.valid, strict=True)]


def late_interaction(
    queries: VectorRows, pages: VectorRows, *, smooth_max: float | None = None
) -> Tensor:
    """Scores of all pairs, with gradients; pages are compared one after the other.

    Args:
        smooth_max: as in `PairLossConfig`.

    Returns:
        float32[Q, P].
    """
    flat = queries.values.float()
    columns = []
    for page in pages.real():
        products = flat @ page.float().T
        if smooth_max is None:
            # Keeps the places of the maxima for the gradient, and no product.
            best = products.max(dim=2).values
        else:
            best = smooth_max * torch.logsumexp(products / smooth_max, dim=2)
        columns.append(torch.where(queries.valid, best, 0.0).sum(dim=1))
    return torch.stack(columns, dim=1)


def pair_loss(
    queries: VectorRows,
    pages: VectorRows,
    config: PairLossConfig,
    *,
    page_of: Sequence[int] | None = None,
    negatives: VectorRows | None = None,
    num_negatives: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Compute the loss of a batch in which one page is right for each query, all others wrong.

    Args:
        queries: Q rows.
        pages: P rows; several queries may share one.
        page_of: number of the right page of each query; by default the i-th of the i-th.
        negatives: hard negatives of the queries, those of one query together.
        num_negatives: how many of them each query has; may be 0.

    Returns:
        The mean loss float32[], and float32[]: the share of the queries whose own page has the
        highest score of the batch, ties counted as failures.

    Raises:
        ConfigError: a query has no page, or one page stands alone without a hard negative.
    """
    scores = _normalised(
        late_interaction(queries, pages, smooth_max=config.smooth_max), queries, config
    )
    num_queries, places = len(queries), list(range(len(queries)) if page_of is None else page_of)
    if len(places) != num_queries or not all(0 <= place < len(pages) for place in places):
        raise ConfigError(
            f"each of {num_queries} queries needs one of {len(pages)} pages, got {places[:8]}"
        )
    own = torch.tensor(places, device=scores.device)
    is_own = F.one_hot(own, len(pages)).bool()
    right = scores[is_own]
    others = scores.masked_fill(is_own, -math.inf)
    first = (right > others.amax(dim=1)).float().mean().detach()
    losses = scores.new_zeros(num_queries)
    has_negatives = negatives is not None and sum(num_negatives) > 0
    if len(pages) > 1:
        losses = _in_batch(scores, right, others, own, config)
    elif not has_negatives:
        raise ConfigError(
            "a query is compared with other pages, got one page and no hard negative; raise the "
            "batch size"
        )
    if negatives is None or not has_negatives:
        return losses.mean(), first
    counts = torch.tensor(list(num_negatives), device=scores.device)
    asked = torch.repeat_interleave(torch.arange(num_queries, device=scores.device), counts)
    hard = _own_scores(queries, negatives, asked, config)
    worse = F.softplus((hard - right[asked]) / config.divisor)
    summed = torch.zeros_like(losses).index_add(0, asked, worse)
    weight = torch.where(counts > 0, config.negatives_weight if len(pages) > 1 else 1.0, 0.0)
    blended = (1 - weight) * losses + weight * summed / counts.clamp(min=1)
    return blended.mean(), first


def in_parts(
    embed: Callable[[int, int], tuple[Tensor, Tensor]], num_rows: int, size: int | None
) -> VectorRows:
    """Embed many rows with the memory of a few (GradCache): parts are computed again for gradients.

    The vectors of all rows are in memory at once, activations only those of one part, so that a
    loss may compare more pages than could be computed together. Gradients are those of one pass.

    Args:
        embed: called with the first row of a part and the one after its last, returns float[b, N,
            D] and bool[b, N].
        num_rows: number of rows in all.
        size: most rows of a part; None computes all at once and keeps their activations.
    """
    if size is None or size >= num_rows:
        values, valid = embed(0, num_rows)
        return VectorRows(values=values, valid=valid)
    found = [
        checkpoint(embed, start, min(start + size, num_rows), use_reentrant=False)
        for start in range(0, num_rows, size)
    ]
    longest = max(valid.shape[1] for _, valid in found)
    return VectorRows(
        values=torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[1])) for one, _ in found]),
        valid=torch.cat([F.pad(one, (0, longest - one.shape[1])) for _, one in found]),
    )


def _in_batch(
    scores: Tensor, right: Tensor, others: Tensor, own: Tensor, config: PairLossConfig
) -> Tensor:
    """float32[Q]: losses among the pages of the batch."""
    if config.suspect_above is not None:
        is_suspect = others > config.suspect_above * right.detach()[:, None]
        others = torch.where(is_suspect, others * 0.5, others)
    if config.kind == "pairwise":
        return F.softplus((others.amax(dim=1) - right) / config.divisor)
    # `right` has its own place, the only one that is minus infinity in `others`.
    whole = torch.where(others == -math.inf, scores, others)
    return F.cross_entropy(whole / config.divisor, own, reduction="none")


def _own_scores(
    queries: VectorRows, negatives: VectorRows, asked: Tensor, config: PairLossConfig
) -> Tensor:
    """float32[sum of K]: the score of each hard negative by its own query."""
    found = []
    for k, row in enumerate(asked.tolist()):
        query = VectorRows(values=queries.values[row : row + 1], valid=queries.valid[row : row + 1])
        page = VectorRows(values=negatives.values[k : k + 1], valid=negatives.valid[k : k + 1])
        score = late_interaction(query, page, smooth_max=config.smooth_max)
        found.append(_normalised(score, query, config)[0, 0])
    return torch.stack(found)


def _normalised(scores: Tensor, queries: VectorRows, config: PairLossConfig) -> Tensor:
    if config.normalisation == "none":
        return scores
    return scores / queries.valid.sum(dim=1).clamp(min=1)[:, None]
