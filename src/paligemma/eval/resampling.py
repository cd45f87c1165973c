"""Many figures resampled together: each resample is drawn once and every statistic sees it."""

import math
import time
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.metrics.interval import NUM_RESAMPLES, resamples
from paligemma.metrics.measure import Statistic

# Seconds of one call from which a statistic gets fewer resamples, and no interval at all.
FEW_RESAMPLES = 200
_SLOW_S, _VERY_SLOW_S = 0.01, 1.0
# A headline may be slower by this factor.
_PATIENCE = 20
# Most resamples times examples; many examples have narrow intervals, which few resamples show.
_MAX_DRAWN = 20_000_000


def unit_of(examples: Sequence[Example]) -> np.ndarray:
    """int64[N]: which unit each example belongs to, numbered in order of first appearance."""
    numbers: dict[tuple[bool, str], int] = {}
    keys = [(one.unit is not None, one.unit or one.id) for one in examples]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def resampled_values(
    statistics: Mapping[str, tuple[Statistic, int]],
    units: np.ndarray,
    *,
    few: Collection[str] = (),
    headline: str = "",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each statistic's values over resamples: float64[R] by name, NaN where it is undefined.

    Statistics over as many examples as there are share their resamples; the others, over pairs or
    groups, are resampled by their own number.

    Args:
        statistics: int64[num] weights -> figure, with num, by name.
        units: int64[N] from `unit_of`; examples of one unit are drawn together.
        num_resamples: number for a quick statistic over up to 20,000 examples; slow ones and those
            over very many get fewer, down to `FEW_RESAMPLES`, very slow ones none.
    """
    by_num: dict[int, dict[str, Statistic]] = {}
    for name, (statistic, num) in statistics.items():
        by_num.setdefault(num, {})[name] = statistic
    values: dict[str, np.ndarray] = {}
    for num, group in by_num.items():
        own = units if num == len(units) else np.arange(num)
        wanted = num_resamples
        if wanted > FEW_RESAMPLES:
            wanted = min(wanted, max(FEW_RESAMPLES, _MAX_DRAWN // num))
        counts = {}
        for name, statistic in group.items():
            patience = _PATIENCE if name == headline else 1
            bound = min(wanted, FEW_RESAMPLES) if name in few else wanted
            counts[name] = min(bound, _affordable(statistic, num, wanted, patience))
        drawn: dict[str, list[float]] = {name: [] for name in group}
        for number, weights in enumerate(resamples(own, max(counts.values(), default=0), seed)):
            for name, statistic in group.items():
                if number < counts[name]:
                    drawn[name].append(_value_of(statistic, weights))
        values |= {name: np.array(found, np.float64) for name, found in drawn.items()}
    return values


def _value_of(statistic: Statistic, weights: np.ndarray) -> float:
    """The figure, or NaN where these examples leave it undefined."""
    try:
        return float(statistic(weights))
    except DataError:
        return float("nan")


def _affordable(statistic: Statistic, num: int, num_resamples: int, patience: int) -> int:
    """Number of resamples that a statistic's speed allows."""
    ones = np.ones(num, np.int64)
    seconds = math.inf
    # A first call may also import something, or fill a cache.
    for _ in range(2):
        started = time.perf_counter()
        _value_of(statistic, ones)
        seconds = min(seconds, (time.perf_counter() - started) / patience)
        if seconds <= _SLOW_S or seconds > 10 * _VERY_SLOW_S:
            break
    if seconds > _VERY_SLOW_S:
        return 0
    return min(FEW_RESAMPLES, num_resamples) if seconds > _SLOW_S else num_resamples
