"""Figures of a run with their intervals, over all examples and by slices of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.errors import DataError
from paligemma.eval.resampling import resampled_values, unit_of
from paligemma.eval.scored import Scored
from paligemma.example import Example
from paligemma.metrics.interval import bounds
from paligemma.metrics.measure import Measure

if TYPE_CHECKING:
    from paligemma.tasks.published import PublishedScore

# A name with more values than this lists examples instead of breaking them down.
MAX_SLICE_VALUES = 200
# Values of one name that a report shows, the largest ones.
MAX_SHOWN_VALUES = 24


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure, in the unit of published tables.

    Attributes:
        measure: its name; a slice that the scorer itself reports follows a slash.
        by, group: name and value of the slice of examples it is limited to; "" for all.
        low, high: bounds of its 95 % bootstrap interval; NaN where there is none.
        published: comparable published figures of the same model size and resolution.
    """

    measure: str
    by: str = ""
    group: str = ""
    value: float
    low: float
    high: float
    num: int
    num_resamples: int
    is_error: bool = False
    published: tuple[PublishedScore, ...] = ()

    @property
    def difference(self) -> float | None:
        """Ours minus the first published figure; None without one."""
        return self.value - self.published[0].value if self.published else None

    @property
    def holds_published(self) -> bool | None:
        """Whether the interval holds the published figure; None without one or the other."""
        if not self.published or math.isnan(self.low):
            return None
        return self.low <= self.published[0].value <= self.high

    def to_json(self) -> dict[str, Any]:
        """Numbers as tables print them; null where undefined."""
        row: dict[str, Any] = {"measure": self.measure}
        if self.by:
            row |= {"by": self.by, "group": self.group}
        row |= {name: rounded(getattr(self, name)) for name in ("value", "low", "high")}
        row |= {"num": self.num, "num_resamples": self.num_resamples}
        if self.is_error:
            row["is_error"] = True
        if self.published:
            row["published"] = [published_json(one) for one in self.published]
            row["difference"] = rounded(self.value - self.published[0].value)
        return row


def rounded(value: float) -> float | None:
    """A number as JSON holds it: five decimals, null where it is not finite."""
    return round(float(value), 5) if math.isfinite(value) else None


def published_json(one: PublishedScore) -> dict[str, Any]:
    """A published figure with its source."""
    names = ("value", "std", "measure", "family", "size", "resolution", "split", "is_test_server")
    return {name: getattr(one, name) for name in (*names, "source")}


def figures_of(
    scored: Scored, comparable: Sequence[PublishedScore], num_resamples: int
) -> tuple[list[Figure], list[Figure]]:
    """All figures of a run, the headline first, and the headline by each slice of the examples."""
    sliced = {json.dumps(key): (key, one) for key, one in _sliced_headline(scored).items()}
    statistics = {one.name: (one.statistic, one.num) for one in scored.measures}
    statistics |= {name: (one.statistic, one.num) for name, (_, one) in sliced.items()}
    headline = scored.headline.name
    values = resampled_values(
        statistics,
        unit_of(scored.examples),
        num_resamples=num_resamples,
        few=sliced.keys(),
        headline=headline,
    )
    figures = [
        _figure(
            one, values[one.name], published=tuple(p for p in comparable if p.measure == one.name)
        )
        for one in scored.measures
    ]
    slices = [
        _figure(one, values[name], by=by, group=group)
        for name, ((by, group), one) in sliced.items()
    ]
    return sorted(figures, key=lambda figure: figure.measure != headline), slices


def _figure(one: Measure, values: np.ndarray, **more: Any) -> Figure:
    low, high = bounds(values)
    return Figure(
        measure=one.name,
        value=one.value * one.scale,
        low=low * one.scale,
        high=high * one.scale,
        num=one.num if one.num_used is None else one.num_used,
        num_resamples=len(values),
        is_error=one.is_error,
        **more,
    )


def _sliced_headline(scored: Scored) -> Mapping[tuple[str, str], Measure]:
    """The headline limited to each slice, the largest slices of each name."""
    headline = scored.headline
    if headline.num != len(scored.examples):
        return {}
    given = {one.name for one in scored.measures}
    by_name: dict[str, list[tuple[str, np.ndarray]]] = {}
    for (by, group), members in slice_members(scored.examples).items():
        if f"{headline.name}/{group}" not in given:
            by_name.setdefault(by, []).append((group, members))
    groups: dict[tuple[str, str], Measure] = {}
    for by, found in by_name.items():
        largest = sorted(found, key=lambda pair: -int(pair[1].sum()))[:MAX_SHOWN_VALUES]
        shown = {group for group, _ in largest}
        groups |= {
            (by, group): limited(headline, headline.name, members)
            for group, members in found
            if group in shown
        }
    return groups


def slice_members(examples: Sequence[Example]) -> dict[tuple[str, str], np.ndarray]:
    """Which examples belong to each slice: (name, value) -> bool[N], sorted.

    A name that has a single value, or as many as a list of examples, breaks nothing down.
    """
    members: dict[str, dict[str, list[int]]] = {}
    for position, one in enumerate(examples):
        for name, value in one.slices.items():
            for each in value if isinstance(value, list | tuple) else (value,):
                members.setdefault(name, {}).setdefault(str(each), []).append(position)
    found: dict[tuple[str, str], np.ndarray] = {}
    for name, by_value in sorted(members.items()):
        if not 2 <= len(by_value) <= MAX_SLICE_VALUES:
            continue
        for value, positions in sorted(by_value.items()):
            is_member = np.zeros(len(examples), bool)
            is_member[positions] = True
            found[name, value] = is_member
    return found


def limited(measure: Measure, name: str, members: np.ndarray) -> Measure:
    """The figure over the examples that bool[N] `members` names."""
    inside = members.astype(np.int64)

    def statistic(weights: np.ndarray) -> float:
        kept = weights * inside
        if not kept.any():
            return math.nan
        try:
            return float(measure.statistic(kept))
        except DataError:  # no object to find among these, no reference
            return math.nan

    parts = measure.per_example
    return replace(
        measure,
        name=name,
        statistic=statistic,
        num_used=int(inside.sum()),
        per_example=None if parts is None else np.where(members, parts, np.nan),
    )
