"""From a task's examples and predictions to figures, for all of them and for every slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure
from paligemma.tasks.task import Example, Prediction, Task

# More values than this make a slice a list of examples, not a breakdown.
MAX_SLICE_VALUES = 200


def score_run(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """The task's figures, the headline first, then the headline limited to each slice.

    A slice's figure is named `headline/slice=value`, and is left out where the task gives it.

    Args:
        task: scores.
        examples: all that count.
        predictions: one an example, in the same order.

    Raises:
        DataError: no example, predictions of other examples, or a score that the task refuses.
    """
    ids = [one.id for one in examples]
    if not ids or ids != [one.id for one in predictions]:
        raise DataError(
            f"a score needs one prediction an example in one order, got {len(predictions)} for "
            f"{len(ids)} examples; match them first"
        )
    measures = task.score(examples, predictions)
    headline = next((one for one in measures if one.name == task.headline), None)
    if headline is None or headline.num != len(examples):
        # A figure over pairs or languages cannot be limited to single examples.
        return measures
    names = {one.name for one in measures}
    slices = slice_members(examples)
    return measures + [
        limited(headline, f"{headline.name}/{name}={value}", members)
        for (name, value), members in slices.items()
        if f"{headline.name}/{value}" not in names
    ]


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


def over_units(measure: Measure, examples: Sequence[Example]) -> Measure:
    """The same figure as a function of how often each unit counts, to be resampled by units.

    Examples of one `unit` are drawn together: rows of a pair, questions about one picture. A figure
    that is not over these examples is returned as it is.
    """
    if measure.num != len(examples) or all(one.unit is None for one in examples):
        return measure
    numbers: dict[str, int] = {}
    unit_of = np.array(
        [
            # No example is called like another's unit.
            numbers.setdefault(f"e {one.id}" if one.unit is None else f"u {one.unit}", len(numbers))
            for one in examples
        ]
    )
    return replace(
        measure,
        statistic=lambda weights: measure.statistic(weights[unit_of]),
        num=len(numbers),
        per_example=None,
    )


def scores_to_json(
    measures: Sequence[Measure],
    examples: Sequence[Example],
    *,
    seed: int = 0,
    with_intervals: bool = True,
) -> list[dict[str, Any]]:
    """One row a figure: name, value, low, high, num, scale, is_error; null where undefined.

    Values are in the metric's own unit; times `scale` they are in that of published tables.
    """
    return [_row(one, examples, seed, with_intervals) for one in measures]


def _row(
    measure: Measure, examples: Sequence[Example], seed: int, with_intervals: bool
) -> dict[str, Any]:
    low = high = math.nan
    if with_intervals:
        low, high = over_units(measure, examples).interval(seed=seed)
    return {
        "name": measure.name,
        "value": _number(measure.value),
        "low": _number(low),
        "high": _number(high),
        "num": measure.num if measure.num_used is None else measure.num_used,
        "scale": measure.scale,
        "is_error": measure.is_error,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
