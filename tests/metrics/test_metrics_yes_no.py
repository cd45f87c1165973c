"""POPE in both readings, and MMVP's pairs and options."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.yes_no import (
    MMVP_CORRECTED_ROWS,
    mmvp_is_right,
    mmvp_measures,
    mmvp_options,
    pope_measures,
    pope_official_answer,
)

YES_NO = st.sampled_from(["yes", "no", "maybe", "No.", "Yes, it is", "not"])


def values(measures: list) -> dict[str, float]:
    return {one.name: one.value for one in measures}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("No, there is none.", "no"),
        ("There is not", "no"),
        ("NO", "yes"),  # the script knows three spellings
        ("Yes. No.", "yes"),  # and the first sentence only
        ("nothing", "yes"),
        ("", "yes"),
    ],
)
def test_the_official_script_looks_for_three_words(text: str, answer: str) -> None:
    assert pope_official_answer(text) == answer


def test_the_three_files_weigh_the_same() -> None:
    found = values(
        pope_measures(
            ["yes", "no", "no", "maybe"],
            ["yes", "no", "yes", "yes"],
            ["random", "random", "random", "popular"],
        )
    )
    assert found["accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["accuracy/random"] == pytest.approx(2 / 3)
    assert found["valid"] == 0.75
    assert found["precision"] == 1.0
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(0.5)
    assert found["yes_ratio"] == 0.25
    assert found["f1/random"] == pytest.approx(2 / 3)
    assert found["official_yes_ratio"] == 0.5


def test_a_rate_without_a_denominator_is_left_out() -> None:
    found = values(pope_measures(["no", "no"], ["no", "no"]))
    assert found["accuracy"] == 1.0
    assert not {"precision", "recall", "f1"} & set(found)


def test_a_label_must_be_yes_or_no() -> None:
    with pytest.raises(DataError, match="'Yes'"):
        pope_measures(["yes"], ["Yes"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(YES_NO, st.sampled_from(["yes", "no"])), min_size=1, max_size=8))
def test_pope_is_bounded_and_knows_no_order(rows: list[tuple[str, str]]) -> None:
    found = values(pope_measures(*map(list, zip(*rows, strict=True))))
    assert all(0 <= one <= 1 for one in found.values())
    assert values(pope_measures(*map(list, zip(*rows[::-1], strict=True)))) == found
    perfect = values(pope_measures([b for _, b in rows], [b for _, b in rows]))
    assert {v for k, v in perfect.items() if "yes_ratio" not in k} == {1.0}


def test_options_are_read_by_letter() -> None:
    assert mmvp_options("(a) Open (b) Closed") == {"a": "Open", "b": "Closed"}
    assert mmvp_options("(A) On the\nleft. (B) f(x)") == {"a": "On the\nleft.", "b": "f(x)"}
    for broken in ("Open, Closed", "(a) Open", "(a) x (a) y", "(b) x (c) y", "either (a) x (b) y"):
        with pytest.raises(DataError, match="options must be written"):
            mmvp_options(broken)


@pytest.mark.parametrize(
    ("answer", "rule", "is_right"),
    [
        (" closed ", "text", True),
        ("Closed", "letter", False),
        ("(b)", "letter", True),
        ("b.", "either", True),
        ("b", "text", False),
        ("open", "either", False),
        ("closed door", "either", False),
    ],
)
def test_an_option_is_named_by_text_or_letter(answer: str, rule: str, is_right: bool) -> None:
    assert mmvp_is_right(answer, "(a) Open (b) Closed", "(b)", rule=rule) is is_right


def test_a_right_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="none of"):
        mmvp_is_right("x", "(a) Open (b) Closed", "(c)")


def test_a_pair_counts_where_both_are_right_in_any_order() -> None:
    found = values(mmvp_measures([True, True, True, False], ["1", "2", "1", "2"]))
    assert found == {"paired_accuracy": 0.5, "accuracy": 0.75}
    assert MMVP_CORRECTED_ROWS == (99, 100, 279, 280)
    with pytest.raises(DataError, match="got 1 in pair"):
        mmvp_measures([True, True, True], ["1", "1", "2"])
