"""Figures over some rows, and by language with their averages."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.subsets import over_rows, score_by_language

LANGUAGES = ["de", "en", "de", "en", "de"]
RIGHT = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


def by_language(expected: tuple[str, ...] = ("de", "en")) -> dict[str, Measure]:
    def score(rows: list[int]) -> list[Measure]:
        return [mean_measure("accuracy", RIGHT[rows])]

    measures = score_by_language(
        LANGUAGES,
        score,
        expected=expected,
        averages={"avg1": ("de",), f"avg{len(expected)}": expected},
    )
    return {one.name: one for one in measures}


def test_an_average_counts_every_language_alike() -> None:
    scores = by_language()
    assert list(scores) == ["accuracy/avg1", "accuracy/avg2", "accuracy/de", "accuracy/en"]
    assert scores["accuracy/de"].value == pytest.approx(2 / 3)
    assert scores["accuracy/avg2"].value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["accuracy/de"].num_used == 3


def test_an_average_is_left_out_where_a_language_has_no_examples() -> None:
    assert list(by_language(("de", "en", "fr"))) == ["accuracy/avg1", "accuracy/de", "accuracy/en"]


def test_every_example_adds_to_its_own_language() -> None:
    scores = by_language()
    per_example = scores["accuracy/avg2"].per_example
    assert per_example is not None
    assert per_example.tolist() == RIGHT.tolist()
    german = scores["accuracy/de"].per_example
    assert german is not None
    assert np.isnan(german).tolist() == [False, True, False, True, False]


def test_a_figure_over_some_rows_reads_their_weights_alone() -> None:
    inner = mean_measure("accuracy", RIGHT[[0, 2, 4]])
    outer = over_rows(inner, [0, 2, 4], 5, "accuracy/de")
    weights = np.array([2, 9, 0, 9, 1])
    assert outer.statistic(weights) == pytest.approx(inner.statistic(np.array([2, 0, 1])))
    assert (outer.num, outer.num_used, outer.scale) == (5, 3, 100.0)
