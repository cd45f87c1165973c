"""Similarity of answers through sentence embeddings that the caller supplies.

Source: PaliGemma report, Objaverse multiview; Kapoor et al., arXiv 2311.17851, for the pooling.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from paligemma.errors import DataError
from paligemma.metrics.pairs import require_same_length


def cosine_similarity(predictions: ArrayLike, references: ArrayLike) -> np.ndarray:
    """Compute the cosine of each prediction with its reference: float64[N] in [-1, 1].

    Args:
        predictions: float[N, D].
        references: float[N, D] of the same encoder.

    Raises:
        DataError: shapes differ, a number is not finite, or an embedding is all zero.
    """
    ours, truth = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    if ours.shape != truth.shape or ours.ndim != 2 or not ours.size:
        raise DataError(
            f"embeddings must be two arrays [N, D] of one shape, got {ours.shape} and "
            f"{truth.shape}; use one encoder for both"
        )
    if not np.isfinite(ours).all() or not np.isfinite(truth).all():
        raise DataError("embeddings must be finite numbers, got NaN or infinity; encode again")
    # Scaled first: squares of very large or small numbers leave the range.
    largest = [np.abs(one).max(-1, keepdims=True) for one in (ours, truth)]
    if not all(one.all() for one in largest):
        raise DataError("an embedding that is all zero has no direction; leave the example out")
    ours, truth = ours / largest[0], truth / largest[1]
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(truth, axis=-1)
    return np.clip((ours * truth).sum(-1) / norms, -1, 1)


def pooled_answer(answers: Sequence[str], logprobs: Sequence[float]) -> tuple[str, float]:
    """Choose the answer with the most probability over all questions and views of an object.

    The exact weighting behind the published figure is not known; this sums exp(log-probability)
    over equal answers, and the first of equally likely ones wins.

    Returns:
        The answer, and the log of its summed probability.

    Raises:
        DataError: lengths differ, no answer, or a log-probability that is not finite.
    """
    require_same_length("pooling answers", answers=answers, logprobs=logprobs)
    if not np.isfinite(np.asarray(logprobs, np.float64)).all():
        raise DataError("log-probabilities must be finite, got NaN or infinity; drop the answer")
    top = max(logprobs)  # keeps the sums in range
    weights: dict[str, float] = {}
    for answer, logprob in zip(answers, logprobs, strict=True):
        weights[answer] = weights.get(answer, 0.0) + math.exp(logprob - top)
    best = max(weights, key=lambda answer: weights[answer])
    return best, top + math.log(weights[best])
