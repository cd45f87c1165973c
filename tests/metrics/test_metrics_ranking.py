"""nDCG beside scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from paligemma.errors import DataError
from paligemma.metrics.ranking import ndcg, ndcg_measures

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=12)


def test_one_query_by_hand() -> None:
    # Ranked relevances 0, 2, 1 against 2, 1, 0.
    ranked = 2 / np.log2(3) + 1 / 2
    best = 2 + 1 / np.log2(3)
    assert ndcg([3, 2, 1], [0, 2, 1]) == pytest.approx(ranked / best, abs=1e-12)
    exponential = (3 / np.log2(3) + 1 / 2) / (3 + 1 / np.log2(3))
    assert ndcg([3, 2, 1], [0, 2, 1], gain="exponential") == pytest.approx(exponential, abs=1e-12)
    assert ndcg([3, 2, 1], [0, 2, 1], k=1) == 0.0


def test_ties_are_averaged_or_taken_as_given() -> None:
    assert ndcg([1, 1], [1, 0]) == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert ndcg([1, 1], [1, 0], ties="given") == 1.0
    assert ndcg([1, 1], [0, 1], ties="given") == pytest.approx(1 / np.log2(3))


@settings(max_examples=30, deadline=None)
@given(ROWS, st.integers(1, 14))
def test_it_agrees_with_scikit_learn_ties_included(rows: list[tuple[int, int]], k: int) -> None:
    scores, relevance = np.array([*rows, (2, 1)]).T
    ours = ndcg(scores, relevance, k=k)
    assert ours == pytest.approx(ndcg_score([relevance], [scores], k=k), abs=1e-12)
    exponential = ndcg(scores, relevance, k=k, gain="exponential")
    expected = ndcg_score([2.0**relevance - 1], [scores], k=k)
    assert exponential == pytest.approx(expected, abs=1e-12)
    assert 0 <= ours <= 1 + 1e-12
    order = np.random.default_rng(0).permutation(len(scores))
    assert ndcg(scores[order], relevance[order], k=k) == pytest.approx(ours)
    assert ndcg(relevance, relevance, k=k) == pytest.approx(1.0)


def test_a_set_of_queries_may_have_different_numbers_of_documents() -> None:
    (found,) = ndcg_measures([[2, 1], [1, 2, 3]], [[1, 0], [1, 0, 0]], k=5)
    assert (found.name, found.value) == ("ndcg@5", pytest.approx((1 + 0.5) / 2))


@pytest.mark.parametrize(
    ("scores", "relevance", "message"),
    [
        ([1.0, 2.0], [0, 0], "no document is relevant"),
        ([1.0], [1, 0], "equally long"),
        ([float("nan"), 1.0], [1, 0], "finite"),
        ([1.0, 2.0], [1, -1], "0 or more"),
    ],
)
def test_undefined_queries_are_named(scores: list, relevance: list, message: str) -> None:
    with pytest.raises(DataError, match=f"query 1: .*{message}"):
        ndcg_measures([[1.0], scores], [[1], relevance])


def test_bounds_of_k_and_of_exponential_gain() -> None:
    with pytest.raises(DataError, match="1 or more"):
        ndcg([1], [1], k=0)
    with pytest.raises(DataError, match="smaller scale"):
        ndcg([1], [2000], gain="exponential")
    with pytest.raises(DataError, match="linear, exponential"):
        ndcg([1], [1], gain="log")  # type: ignore[arg-type]
