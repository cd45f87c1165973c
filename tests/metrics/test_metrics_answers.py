"""Equality, counts, question types and letters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.answers import (
    exact_match_measures,
    rsvqa_bin_answer,
    rsvqa_measures,
    scienceqa_measures,
    tallyqa_measures,
    truth_word,
)

TEXTS = st.lists(st.text(max_size=6), min_size=1, max_size=8)


def values(measures: list) -> dict[str, float]:
    return {one.name: one.value for one in measures}


def test_equality_strips_nothing_and_lowers_only_when_asked() -> None:
    ours, right = ["top", " top", "Top", None], ["top", "top", "top", "None"]
    assert values(exact_match_measures(ours, right)) == {"accuracy": 0.25}
    assert values(exact_match_measures(ours, right, lower=True)) == {"accuracy": 0.5}


def test_groups_are_reported_beside_the_whole() -> None:
    found = exact_match_measures(["a", "b", "c"], ["a", "b", "x"], groups=["q", "p", "p"])
    assert values(found) == pytest.approx({"accuracy": 2 / 3, "accuracy/p": 0.5, "accuracy/q": 1})


def test_counts_are_compared_as_digits_up_to_twenty() -> None:
    ours = ["Twenty", "none", "twenty-one", "2.0", "3"]
    right = ["20", "0", "21", "2", "three"]
    found = values(tallyqa_measures(ours, right, [1, 0, 0, None, True]))
    assert found["accuracy"] == 0.6
    assert found["accuracy/simple"] == 1.0
    assert found["accuracy/complex"] == 0.5
    assert list(found)[3:] == [f"accuracy/count_{n}" for n in (0, 2, 3, 20, 21)]


def test_question_types_weigh_the_same_however_many_questions_they_have() -> None:
    types = ["comp"] * 3 + ["presence"] + ["rural_urban"]
    found = values(rsvqa_measures(["YES", "no", "no", "yes", "x"], ["yes"] * 5, types))
    assert found["mean_accuracy"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found["accuracy"] == pytest.approx(2 / 5)
    assert found["mean_accuracy/nonum"] == found["mean_accuracy"]
    assert found["mean_accuracy/comp+presence"] == pytest.approx((1 / 3 + 1) / 2)
    only_counts = values(rsvqa_measures(["1"], ["1"], ["count"]))
    assert list(only_counts) == ["mean_accuracy", "accuracy", "accuracy/count"]


@pytest.mark.parametrize(
    ("answer", "kind", "resolution", "expected"),
    [
        ("1", "count", "lr", "between 1 and 10"),
        ("100", "count", "lr", "between 11 and 100"),
        ("101", "count", "lr", "between 101 and 1000"),
        ("11m2", "area", "hr", "between 11 m2 and 100 m2"),
        ("1000m2", "area", "hr", "between 101 m2 and 1000 m2"),
        ("yes", "presence", "lr", "yes"),
        ("12m2", "area", "lr", "12m2"),
    ],
)
def test_numeric_answers_fall_into_ranges(
    answer: str, kind: str, resolution: str, expected: str
) -> None:
    assert rsvqa_bin_answer(answer, kind, resolution=resolution) == expected


@pytest.mark.parametrize(
    ("answer", "kind", "resolution"),
    [("many", "count", "lr"), ("-1", "count", "lr"), ("12", "area", "hr"), ("", "count", "lr")],
)
def test_an_answer_that_is_no_number_is_refused(answer: str, kind: str, resolution: str) -> None:
    with pytest.raises(DataError, match="RSVQA"):
        rsvqa_bin_answer(answer, kind, resolution=resolution)


def test_a_letter_needs_the_sentence_at_the_start() -> None:
    ours = ["The answer is A.", "the ANSWER is b. Because", " The answer is C.", "D."]
    right = [f"The answer is {letter}." for letter in "ABCD"]
    assert values(scienceqa_measures(ours, right)) == {"accuracy": 0.5, "unparsed": 0.5}
    with pytest.raises(DataError, match="The answer is B"):
        scienceqa_measures(["x"], ["B"])


def test_labels_become_the_words_that_are_taught() -> None:
    assert (truth_word(1), truth_word(False)) == ("True", "False")


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_the_right_answers_score_one_whatever_they_are(texts: list[str]) -> None:
    for measures in (
        exact_match_measures(texts, texts, lower=True),
        tallyqa_measures(texts, texts),
        rsvqa_measures(texts, texts, ["comp"] * len(texts)),
    ):
        assert {one.value for one in measures} == {1.0}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab")), min_size=1, max_size=9))
def test_accuracy_is_a_share_that_knows_no_order(rows: list[tuple[str, str]]) -> None:
    ours, right = [list(side) for side in zip(*rows, strict=True)]
    score = exact_match_measures(ours, right)[0].value
    assert 0 <= score <= 1
    assert exact_match_measures(ours[::-1], right[::-1])[0].value == score


def test_every_scorer_refuses_to_score_nothing() -> None:
    for scorer in (exact_match_measures, tallyqa_measures, scienceqa_measures):
        with pytest.raises(DataError, match="without examples"):
            scorer([], [])
