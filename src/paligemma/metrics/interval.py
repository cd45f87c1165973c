"""How sure a figure is: the percentile bootstrap over examples.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

NUM_RESAMPLES = 1000
LEVEL = 0.95


@lru_cache(maxsize=2)
def resampled_weights(num: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each of `num` examples is drawn in each resample: int64[num_resamples, num]."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)
    weights.setflags(write=False)
    return weights


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], num: int, *, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Bounds of a figure that is a function of how often each example counts.

    Args:
        statistic: int64[num] weights -> the figure; resamples where it is not finite are left out.
        num: examples, at least 1.
        level: share of resamples between the bounds.
        seed: of the resampling.

    Returns:
        Low and high bound; NaN where no resample has a value.
    """
    values = np.array([statistic(weights) for weights in resampled_weights(num, seed=seed)])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio(parts: np.ndarray, totals: np.ndarray) -> Callable[[np.ndarray], float]:
    """The statistic sum(w * parts) / sum(w * totals): a mean, an accuracy, an error rate."""

    def statistic(weights: np.ndarray) -> float:
        total = float(weights @ totals)
        return float(weights @ parts) / total if total else float("nan")

    return statistic
