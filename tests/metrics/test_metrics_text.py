"""Edit distances, error rates and exact match."""

from __future__ import annotations

import numpy as np
import pytest
from reference import levenshtein

from paligemma.errors import DataError
from paligemma.metrics.text import character_error_rate, edit_distance, exact_match


def _random_text(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("ab c"), size=int(rng.integers(0, 9))))


def test_the_edit_distance_is_that_of_the_slow_definition() -> None:
    rng = np.random.default_rng(0)
    pairs = [(_random_text(rng), _random_text(rng)) for _ in range(300)]
    assert [edit_distance(a, b) for a, b in pairs] == [levenshtein(a, b) for a, b in pairs]
    assert max(levenshtein(a, b) for a, b in pairs) >= 6


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("STOP", "STOP", 0),
        ("flaw", "lawn", 2),
    ],
)
def test_the_edit_distance_of_known_pairs(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_the_edit_distance_counts_any_units() -> None:
    assert edit_distance(["a", "red", "star"], ["a", "star"]) == 1


def test_the_error_rate_pools_edits_and_characters_of_the_corpus() -> None:
    # 1 edit of 1 character and 1 edit of 9: the mean of rates would be 0.56.
    assert character_error_rate(["x", "123456780"], ["y", "123456789"]) == pytest.approx(0.2)


def test_empty_answers_have_an_error_rate_of_one_and_babble_more() -> None:
    assert character_error_rate(["", ""], ["STOP", "7"]) == 1.0
    assert character_error_rate(["xxxxxxxx"], ["STOP"]) == 2.0


def test_an_error_rate_without_reference_text_is_refused() -> None:
    with pytest.raises(DataError, match="reference characters"):
        character_error_rate(["x"], [""])
    with pytest.raises(DataError, match="got 1 and 2"):
        character_error_rate(["x"], ["x", "y"])


def test_exact_match_minds_case_and_refuses_nothing() -> None:
    assert exact_match(["red", "Red", "3"], ["red", "red", "4"]) == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="at least one pair"):
        exact_match([], [])
