"""Figures limited to a slice of the examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.metrics.measure import Measure

# More values than this make a slice a list of examples, not a breakdown.
MAX_SLICE_VALUES = 200


def slice_members(examples: Sequence[Example]) -> dict[tuple[str, str], np.ndarray]:
    """Which examples belong to each slice: (name, value) -> bool[N], sorted.

    A name that has a single value, or as many as a list of examples, breaks nothing down.
    """
    members: dict[str, dict[str, list[int]]] = {}
    for position, one in enumerate(examples):
        for name, value in one.slices.items():
            members.setdefault(name, {}).setdefault(str(value), []).append(position)
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
