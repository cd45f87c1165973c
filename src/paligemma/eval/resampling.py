"""Many figures resampled together: each resample is drawn once and every statistic sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.metrics.interval import NUM_RESAMPLES, resamples
from paligemma.metrics.measure import Statistic

# Slower statistics get fewer resamples, very slow ones no interval at all: seconds of one call.
FEW_RESAMPLES = 200
_SLOW_S, _VERY_SLOW_S = 0.01, 1.0
# So much slower a headline may be.
_PATIENCE = 20
# Resamples times examples; many examples have narrow intervals, which fewer resamples show as well.
_MAX_DRAWN = 20_000_000


def unit_of(examples: Sequence[Example]) -> np.ndarray:
    """int64[N]: which unit each example belongs to, numbered in order of first appearance."""
    numbers: dict[tuple[bool, str], int] = {}
    keys = [(one.unit is not None, one.unit or one.id) for one in examples]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def resampled_values(
    statistics: Mapping[str, Statistic],
    units: np.ndarray,
    *,
    most: Mapping[str, int] | None = None,
    headline: str = "",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each statistic's values over resamples, NaN where it is undefined.

    Args:
        statistics: int64[N] weights -> figure, by name.
        units: see `resamples`.
        most: bounds on the resamples of some statistics.
        headline: the one that is waited for.
        num_resamples: of a quick statistic over up to 20,000 examples; slow ones and those over
            very many get fewer, down to `FEW_RESAMPLES`, very slow ones none.

    Returns:
        float64[R] by name, R resamples.
    """
    ones = np.ones(len(units), np.int64)
    if num_resamples > FEW_RESAMPLES:
        num_resamples = min(num_resamples, max(FEW_RESAMPLES, _MAX_DRAWN // len(units)))
    counts = {}
    for name, statistic in statistics.items():
        bound = min(num_resamples, (most or {}).get(name, num_resamples))
        patience = _PATIENCE if name == headline else 1
        counts[name] = min(bound, _affordable(statistic, ones, num_resamples, patience))
    return drawn_values(statistics, units, counts, seed)


def drawn_values(
    statistics: Mapping[str, Statistic],
    units: np.ndarray,
    counts: Mapping[str, int],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each statistic's values over the first so many resamples: float64[counts[name]] by name."""
    values: dict[str, list[float]] = {name: [] for name in statistics}
    for number, weights in enumerate(resamples(units, max(counts.values(), default=0), seed)):
        for name, statistic in statistics.items():
            if number < counts[name]:
                values[name].append(value_of(statistic, weights))
    return {name: np.array(found, np.float64) for name, found in values.items()}


def value_of(statistic: Statistic, weights: np.ndarray) -> float:
    """The figure, or NaN where these examples leave it undefined."""
    try:
        return float(statistic(weights))
    except DataError:
        return float("nan")


def _affordable(statistic: Statistic, ones: np.ndarray, num_resamples: int, patience: int) -> int:
    seconds = math.inf
    # A first call may also import something, or fill a cache.
    for _ in range(2):
        started = time.perf_counter()
        value_of(statistic, ones)
        seconds = min(seconds, (time.perf_counter() - started) / patience)
        if seconds <= _SLOW_S or seconds > 10 * _VERY_SLOW_S:
            break
    if seconds > _VERY_SLOW_S:
        return 0
    return min(FEW_RESAMPLES, num_resamples) if seconds > _SLOW_S else num_resamples
