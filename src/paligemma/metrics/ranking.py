"""Scores of rankings: normalised discounted cumulative gain.

Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002 (linear
gain); Burges et al., Learning to rank using gradient descent, 2005 (exponential gain); McSherry and
Najork, Computing information retrieval performance measures efficiently in the presence of tied
scores, 2008.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.pairs import require_choice, require_same_length

# Relevance itself, or 2 to the relevance minus 1; the same where relevance is 0 or 1.
Gain = Literal["linear", "exponential"]
# Equal scores: the expectation over all their orders, or the order given.
RankTieRule = Literal["average", "given"]
_MAX_EXPONENT = 60


def ndcg(
    scores: ArrayLike,
    relevance: ArrayLike,
    *,
    k: int = 5,
    gain: Gain = "linear",
    ties: RankTieRule = "average",
) -> float:
    """Compute nDCG of one query over its first k documents.

    Args:
        scores: float[D], score of each document; the highest ranks first.
        relevance: float[D], relevance of each document, at least 0.
        k: number of documents that count, at least 1.

    Returns:
        In [0, 1].

    Raises:
        DataError: lengths differ, a number is not finite or negative, or nothing is relevant.
    """
    ranks_by, relevant = np.asarray(scores, np.float64), np.asarray(relevance, np.float64)
    if ranks_by.shape != relevant.shape or ranks_by.ndim != 1:
        raise DataError(
            f"nDCG needs a score and a relevance a document, got {ranks_by.shape} and "
            f"{relevant.shape}; pass two equally long lists"
        )
    if not np.isfinite(ranks_by).all() or not np.isfinite(relevant).all() or (relevant < 0).any():
        raise DataError("nDCG needs finite scores and relevances of 0 or more; correct them")
    require_choice("nDCG's gain", gain, Gain)
    require_choice("nDCG's rule for ties", ties, RankTieRule)
    if k < 1:
        raise DataError(f"nDCG needs k of 1 or more, got {k}")
    if not relevant.any():
        raise DataError("nDCG is undefined where no document is relevant; leave the query out")
    gains = _gains(relevant, gain)
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
    discounts[k:] = 0
    best = np.sort(gains)[::-1] @ discounts
    order = np.argsort(-ranks_by, kind="stable")
    if ties == "given":
        return float(gains[order] @ discounts / best)
    # Documents of one score share the discounts of the places that they take together.
    _, group, size = np.unique(-ranks_by, return_inverse=True, return_counts=True)
    mean_gain = np.bincount(group, gains) / size
    return float(mean_gain[group[order]] @ discounts / best)


def ndcg_measures(
    scores: Sequence[ArrayLike],
    relevance: Sequence[ArrayLike],
    *,
    k: int = 5,
    gain: Gain = "linear",
    ties: RankTieRule = "average",
) -> list[Measure]:
    """Compute nDCG@k, the mean over queries.

    Args:
        scores: float[D] a query; D may differ.
        relevance: float[D] a query.

    Raises:
        DataError: as `ndcg`, naming the query.
    """
    require_same_length("nDCG", scores=scores, relevance=relevance)
    values = []
    for index, (ranked, relevant) in enumerate(zip(scores, relevance, strict=True)):
        try:
            values.append(ndcg(ranked, relevant, k=k, gain=gain, ties=ties))
        except DataError as error:
            raise DataError(f"query {index}: {error}") from error
    return [mean_measure(f"ndcg@{k}", values)]


def _gains(relevance: np.ndarray, gain: Gain) -> np.ndarray:
    if gain == "linear":
        return relevance
    if relevance.max() > _MAX_EXPONENT:
        raise DataError(
            f"exponential gain takes relevances up to {_MAX_EXPONENT}, got {relevance.max()}; "
            "grade on a smaller scale"
        )
    return np.exp2(relevance) - 1
