"""Figures that can be computed again for any resampling of their examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from paligemma.errors import DataError
from paligemma.metrics.interval import bootstrap_interval, ratio

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """One figure over N examples.

    Attributes:
        name: name such as "cider" or "accuracy/yesno", where a slice follows the slash.
        statistic: computes the figure in its own unit from int64[N], how often each example
            counts; NaN where it is undefined for these examples.
        num_used: number of examples in the slice of the figure; None for all.
        per_example: float64[N], contribution of each example, by which the worst are found; NaN
            where it does not apply, None where a figure has no parts.
        is_error: whether a low figure is better.
        scale: factor to the unit of published tables, 100 for shares.
    """

    name: str
    statistic: Statistic = field(repr=False)
    num: int
    num_used: int | None = None
    per_example: np.ndarray | None = field(default=None, repr=False)
    is_error: bool = False
    scale: float = 100.0

    @property
    def value(self) -> float:
        """The figure with every example counted once, in the metric's own unit."""
        return float(self.statistic(np.ones(self.num, np.int64)))

    def interval(self) -> tuple[float, float]:
        """Compute the bounds of the percentile bootstrap, see `bootstrap_interval`."""
        return bootstrap_interval(self.statistic, self.num)


def ratio_measure(
    name: str,
    parts: ArrayLike,
    totals: ArrayLike,
    *,
    is_error: bool = False,
    scale: float = 100.0,
) -> Measure:
    """Build the pooled rate: the sum of `parts` over the sum of `totals`, both float[N].

    Raises:
        DataError: no example, or nothing to divide by.
    """
    above, below = np.asarray(parts, np.float64), np.asarray(totals, np.float64)
    _require(name, above, below)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_example = np.where(below > 0, above / below, np.nan)
    return Measure(
        name=name,
        statistic=ratio(above, below),
        num=len(above),
        num_used=int((below > 0).sum()),
        per_example=per_example,
        is_error=is_error,
        scale=scale,
    )


def mean_measure(
    name: str,
    values: ArrayLike,
    where: ArrayLike | None = None,
    *,
    is_error: bool = False,
    scale: float = 100.0,
) -> Measure:
    """Build the mean of float[N] values over the examples that bool[N] `where` selects, or all.

    Raises:
        DataError: no example to average.
    """
    numbers = np.asarray(values, np.float64)
    used = np.ones(len(numbers), bool) if where is None else np.asarray(where, bool)
    # An example outside the slice may hold NaN.
    return ratio_measure(name, np.where(used, numbers, 0.0), used, is_error=is_error, scale=scale)


def average_of(name: str, measures: Sequence[Measure]) -> Measure:
    """Build the unweighted mean of figures over the same examples: of types, languages, files.

    Raises:
        DataError: nothing to average, or figures over different examples.
    """
    if not measures or len({one.num for one in measures}) != 1:
        raise DataError(
            f"{name} averages figures over the same examples, got {len(measures)} over "
            f"{sorted({one.num for one in measures})}"
        )

    def statistic(weights: np.ndarray) -> float:
        return float(np.mean([one.statistic(weights) for one in measures]))

    first = measures[0]
    return Measure(
        name=name, statistic=statistic, num=first.num, is_error=first.is_error, scale=first.scale
    )


def _require(name: str, parts: np.ndarray, totals: np.ndarray) -> None:
    if parts.shape != totals.shape or parts.ndim != 1:
        raise DataError(f"{name} needs two equally long lists, got {parts.shape}, {totals.shape}")
    if not np.isfinite(parts).all() or not np.isfinite(totals).all():
        raise DataError(f"{name} needs finite numbers, got NaN or infinity")
    if not totals.sum() > 0:
        raise DataError(f"{name} is undefined without examples; leave it out")
