"""Figures limited to slices of the examples."""

from __future__ import annotations

import math

import numpy as np

from paligemma.errors import DataError
from paligemma.eval.figures import limited, slice_members
from paligemma.example import Example
from paligemma.metrics.measure import Measure, mean_measure


def _example(name: str, **slices: str) -> Example:
    return Example(id=name, prefix="", pictures=(), references=None, slices=slices)


EXAMPLES = [
    _example("0", kind="x", length="short", only="one"),
    _example("1", kind="y", length="short", only="one"),
    _example("2", kind="y", length="long", only="one"),
    _example("3", length="long", only="one"),
]


def test_every_value_of_a_slice_names_its_examples() -> None:
    members = slice_members(EXAMPLES)
    # "only" breaks nothing down.
    assert {name: np.flatnonzero(where).tolist() for name, where in members.items()} == {
        ("kind", "x"): [0],
        ("kind", "y"): [1, 2],
        ("length", "long"): [2, 3],
        ("length", "short"): [0, 1],
    }


def test_a_list_of_examples_is_no_breakdown() -> None:
    many = [_example(str(k), word=str(k)) for k in range(201)]
    assert slice_members(many) == {}
    assert len(slice_members(many[:200])) == 200


def test_a_limited_figure_is_that_of_its_examples_under_any_weights() -> None:
    measure = mean_measure("accuracy", [1, 1, 0, 0])
    kind = limited(measure, "accuracy/kind=y", np.array([False, True, True, False]))
    assert (kind.name, kind.value, kind.num, kind.num_used) == ("accuracy/kind=y", 0.5, 4, 2)
    assert kind.statistic(np.array([5, 3, 1, 7])) == 0.75
    assert math.isnan(kind.statistic(np.array([5, 0, 0, 7])))
    assert kind.per_example is not None
    np.testing.assert_array_equal(kind.per_example, [np.nan, 1, 0, np.nan])


def test_a_slice_is_undefined_where_the_metric_refuses_its_examples() -> None:
    def refusing(weights: np.ndarray) -> float:
        if not weights[0]:
            raise DataError("needs the first")
        return 1.0

    measure = Measure(name="m", statistic=refusing, num=2)
    values = [
        limited(measure, "m/x", np.array(members)).value
        for members in ([True, False], [False, True], [False, False])
    ]
    assert values[0] == 1.0
    assert math.isnan(values[1])
    assert math.isnan(values[2])
