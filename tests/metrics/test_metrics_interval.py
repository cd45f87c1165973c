"""Bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paligemma.metrics.interval import bootstrap_interval, ratio, resamples


def test_a_resample_draws_as_many_examples_as_there_are() -> None:
    weights = np.array(list(resamples(np.arange(50), 1000)))
    assert weights.shape == (1000, 50)
    assert (weights.sum(axis=1) == 50).all()
    # A share (1 - 1/50)^50 = 0.364 of the examples is left out of each.
    assert (weights == 0).mean() == pytest.approx(0.364, abs=0.01)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide() -> None:
    right = (np.random.default_rng(1).random(400) < 0.8).astype(float)
    low, high = bootstrap_interval(ratio(right, np.ones(400)), 400)
    error = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 400)
    # The normal approximation is 0.041 wide to either side.
    assert low == pytest.approx(right.mean() - error, abs=0.008)
    assert high == pytest.approx(right.mean() + error, abs=0.008)


def test_the_interval_is_the_same_every_time() -> None:
    statistic = ratio(np.arange(9.0), np.full(9, 8.0))
    assert bootstrap_interval(statistic, 9) == bootstrap_interval(statistic, 9)


def test_an_undefined_figure_has_no_interval() -> None:
    low, high = bootstrap_interval(ratio(np.zeros(3), np.zeros(3)), 3)
    assert math.isnan(low)
    assert math.isnan(high)
