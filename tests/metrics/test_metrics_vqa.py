"""VQA accuracy: the clean-up with its quirks, leaving one annotator out, soft accuracy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.vqa import (
    leave_one_out_accuracy,
    normalize_answer,
    soft_accuracy_measures,
    vqa_accuracies,
    vqa_measures,
)

WORDS = st.sampled_from(["yes", "Yes", "no", "two", "2", "a dog", "dog.", "", "1,000", "hot-dog"])
TEN = st.lists(WORDS, min_size=10, max_size=10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Next to a space somewhere, a mark is deleted everywhere; elsewhere it becomes a space.
        ("a-b c- d", "ab c d"),
        ("a-b/c", "b c"),
        # Digit-comma-digit deletes every mark, wherever it stands.
        ("1,000/x-y", "1000xy"),
        ("3.5 m.", "3.5 m"),
        ("he's 'fine' $5 10:30 R&B 50%", "he's 'fine' $5 10:30 r&b 50%"),
        ("None of THE ten", "0 of 10"),
        ("Im Ive dont", "im ive don't"),
        ("eleven", "eleven"),
        ("\tNew\nline", "new line"),
    ],
)
def test_answers_are_cleaned_up_with_the_quirks_of_the_script(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_all_full_stops_go() -> None:
    assert normalize_answer("x" + "." * 40) == "x"


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_each_annotator_is_left_out_once(matches: int, accuracy: float) -> None:
    assert leave_one_out_accuracy(matches) == pytest.approx(accuracy, abs=1e-12)


def test_nothing_is_normalised_where_all_annotators_agree() -> None:
    assert vqa_accuracies(["Yes"], [["yes"] * 10]).tolist() == [0.0]


def test_answer_types_are_scored_apart_in_the_official_order() -> None:
    answers = [["2"] * 9 + ["3"], ["yes"] * 9 + ["no"], ["tan"] * 9 + ["brown"]]
    types = ["number", "yes/no", "other"]
    found = vqa_measures(["2", "no", "brown"], answers, types)
    assert [one.name for one in found] == [
        "accuracy",
        "accuracy/yesno",
        "accuracy/number",
        "accuracy/other",
    ]
    assert [one.value for one in found] == pytest.approx([1.6 / 3, 0.3, 1.0, 0.3], abs=1e-12)
    assert [one.num_used for one in found] == [3, 1, 1, 1]


def test_questions_that_are_dropped_do_not_count() -> None:
    answers = [["red"] * 10, ["blue"] * 10]
    official = soft_accuracy_measures(["red", "x"], answers, drop=[False, True])
    reference = soft_accuracy_measures(["red", "x"], answers)
    assert (official[0].value, reference[0].value) == (1.0, 0.5)


def test_soft_accuracy_counts_exact_matches_and_a_missing_answer_never_matches() -> None:
    answers = [["red"] * 2 + ["Red"] * 8, ["blue"] * 10, [""] * 10]
    found = soft_accuracy_measures(["red", None, ""], answers)
    assert [one.value for one in found] == pytest.approx([(2 / 3 + 0 + 1) / 3, 2 / 3], abs=1e-12)
    assert soft_accuracy_measures(["RED"], answers[:1], lower=True)[0].value == 1.0


@pytest.mark.parametrize(
    ("predictions", "answers", "message"),
    [
        (["a"], [], "one length"),
        ([], [], "without examples"),
        (["a"], [["a"]], "at least 2"),
        (["a"], ["aa"], "wrap it in a list"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    predictions: list[str], answers: list[list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        vqa_accuracies(predictions, answers)


def test_dropping_every_question_is_refused() -> None:
    with pytest.raises(DataError, match="every question is dropped"):
        soft_accuracy_measures(["a"], [["a"]], drop=[True])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(WORDS, TEN), min_size=1, max_size=6), st.randoms())
def test_accuracy_is_a_share_and_knows_no_order(
    rows: list[tuple[str, list[str]]], random: object
) -> None:
    scores = vqa_accuracies([ours for ours, _ in rows], [ten for _, ten in rows])
    assert ((scores >= 0) & (scores <= 1)).all()
    shuffled = [(ours, random.sample(ten, 10)) for ours, ten in rows]  # type: ignore[attr-defined]
    again = vqa_accuracies([ours for ours, _ in shuffled], [ten for _, ten in shuffled])
    assert again.tolist() == scores.tolist()


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20))
def test_what_ten_annotators_say_is_right(text: str) -> None:
    assert vqa_accuracies([text], [[text] * 10]).tolist() == [1.0]
