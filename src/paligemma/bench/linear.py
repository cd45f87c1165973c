"""Whether a cost grows linearly: the line through measured points, and how far off they lie."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
# Two points always lie on a line.
_FEWEST = 3


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points, by least squares.

    Attributes:
        start: its value at 0.
        slope: growth for one more.
        departure: largest distance of a point from the line, as a share of the line there.
    """

    start: float
    slope: float
    departure: float

    @classmethod
    def through(cls, points: Points) -> Line | None:
        """The line, or None of fewer than three points."""
        if len(points) < _FEWEST:
            return None
        slope, start = statistics.linear_regression(*zip(*points, strict=True))
        departure = max(abs(y / (start + slope * x) - 1) for x, y in points)
        return cls(start=start, slope=slope, departure=departure)
