"""The level of the processor is taken only where it computes what plain C computes."""

from __future__ import annotations

import ctypes
import logging
from types import SimpleNamespace
from typing import cast

import pytest

from paligemma.kernels import native


def fake(difference: float, taken: list[int]) -> ctypes.CDLL:
    """A library whose best level differs by so much."""
    library = SimpleNamespace(
        pg_level_difference=lambda: difference, pg_level=lambda: 1, pg_set_level=taken.append
    )
    return cast(ctypes.CDLL, library)


@pytest.mark.parametrize("difference", [1e-3, float("inf"), float("nan")])
def test_a_level_that_multiplies_otherwise_is_left_with_a_warning(
    difference: float, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[int] = []
    with caplog.at_level(logging.WARNING):
        native.leave_a_wrong_level(fake(difference, taken))
    assert taken == [0]
    assert "AVX2 differ from plain C" in caplog.text


def test_a_level_within_rounding_stays(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[int] = []
    native.leave_a_wrong_level(fake(2e-7, taken))
    assert not taken
    assert not caplog.text


def test_the_check_computes_at_both_levels_and_leaves_the_level_as_it_was(level: int) -> None:
    library = native.library()
    assert library is not None
    difference = library.pg_level_difference()
    assert library.pg_level() == level
    assert 0 <= difference <= 1e-6
    assert ("checked" in native.describe()) == bool(level)
