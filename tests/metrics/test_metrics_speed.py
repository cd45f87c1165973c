"""The CPU and quantisation tables."""

from __future__ import annotations

import math

import pytest

from paligemma.errors import DataError
from paligemma.metrics.speed import cpu_table, relative_quality


def test_seconds_become_tokens_a_second() -> None:
    # The report's row of 8 + 1 threads on Genoa prints 147 and 37.
    found = cpu_table(prefill_seconds=1.8, extend_seconds=0.29)
    assert found["prefill_tok_per_s"] == pytest.approx(260 / 1.8)
    assert found["extend_tok_per_s"] == pytest.approx(11 / 0.29)


def test_quality_is_relative_to_full_precision() -> None:
    assert relative_quality(50.0, 49.0) == 98.0


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_a_time_must_be_positive_and_finite(seconds: float) -> None:
    with pytest.raises(DataError, match="extend_seconds"):
        cpu_table(prefill_seconds=1, extend_seconds=seconds)
    with pytest.raises(DataError, match="full"):
        relative_quality(seconds, 1)


def test_a_score_must_be_finite() -> None:
    with pytest.raises(DataError, match="quantised"):
        relative_quality(1, math.nan)
