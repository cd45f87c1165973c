"""Confidence intervals: the percentile bootstrap over examples.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
"""

from collections.abc import Callable, Iterator

import numpy as np

NUM_RESAMPLES = 1000
LEVEL = 0.95


def resamples(units: np.ndarray, num_resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw how often each example counts in each resample, one int64[N] after the other.

    Args:
        units: int64[N], number of each example's unit, from 0; examples of one unit are drawn
            together.
    """
    num = int(units.max()) + 1
    rng = np.random.default_rng(seed)
    share = np.full(num, 1 / num)
    for _ in range(num_resamples):
        yield rng.multinomial(num, share)[units]


def bounds(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Compute low and high quantile of float64[R] without NaN; NaN twice where nothing is left."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(statistic: Callable[[np.ndarray], float], num: int) -> tuple[float, float]:
    """Compute bounds of a figure that depends on how often each of `num` examples counts."""
    drawn = resamples(np.arange(num), NUM_RESAMPLES)
    return bounds(np.array([statistic(weights) for weights in drawn]))


def ratio(parts: np.ndarray, totals: np.ndarray) -> Callable[[np.ndarray], float]:
    """Build the statistic sum(w * parts) / sum(w * totals): a mean, accuracy or error rate."""

    def statistic(weights: np.ndarray) -> float:
        total = float(weights @ totals)
        return float(weights @ parts) / total if total else float("nan")

    return statistic
