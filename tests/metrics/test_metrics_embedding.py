"""Cosine similarity and the pooling of sampled answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.embedding import cosine_similarity, pooled_answer

VECTORS = st.lists(
    st.lists(st.floats(-1e3, 1e3).filter(lambda x: abs(x) > 1e-3), min_size=3, max_size=3),
    min_size=2,
    max_size=5,
)


def test_the_angle_counts_and_not_the_length() -> None:
    found = cosine_similarity(
        [[1, 0, 1], [3, 0, 0], [1e-200, 0, 0]], [[1, 1, 0], [1, 0, 0], [1e200, 0, 0]]
    )
    assert found == pytest.approx([0.5, 1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "truth", "message"),
    [
        ([[1, 2]], [[1, 2, 3]], "one shape"),
        ([1, 2], [1, 2], "one shape"),
        ([[0, 0]], [[1, 0]], "no direction"),
        ([[math.nan, 0]], [[1, 0]], "finite"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "one shape"),
    ],
)
def test_what_has_no_angle_is_refused(ours: object, truth: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cosine_similarity(ours, truth)  # type: ignore[arg-type]


def test_equal_answers_pool_their_probability() -> None:
    answers = ["chair", "stool", "chair"]
    best, logprob = pooled_answer(answers, [math.log(0.2), math.log(0.3), math.log(0.2)])
    assert best == "chair"
    assert logprob == pytest.approx(math.log(0.4))
    assert pooled_answer(["a", "b"], [-1000.0, -1001.0])[0] == "a"
    with pytest.raises(DataError, match="finite"):
        pooled_answer(["a"], [-math.inf])


@settings(max_examples=30, deadline=None)
@given(VECTORS, st.floats(0.1, 10))
def test_it_is_bounded_perfect_on_itself_and_knows_no_scale_or_order(
    rows: list[list[float]], scale: float
) -> None:
    array = np.array(rows)
    other = array[::-1]
    found = cosine_similarity(array, other)
    assert (np.abs(found) <= 1).all()
    assert cosine_similarity(scale * array, other) == pytest.approx(found)
    assert cosine_similarity(array, array) == pytest.approx(np.ones(len(array)))
    assert cosine_similarity(array[::-1], other[::-1]) == pytest.approx(found[::-1])
