"""ANLS in three variants, orderings of parts, relaxed accuracy."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.documents import (
    anls,
    anls_measures,
    comma_orderings,
    is_relaxed_match,
    relaxed_accuracy_measures,
)

VARIANTS = ("big_vision", "server_like", "pypi")
SHORT = st.text(st.sampled_from("ab ,.B"), max_size=8)


@pytest.mark.parametrize(
    ("ours", "reference", "expected"),
    [
        ("abxy", "abcd", (0.0, 0.5, 0.0)),  # exactly half
        ("", "", (1.0, 1.0, 1.0)),
        ("x", "", (0.0, 0.0, 0.0)),
        ("A  B", "a b", (0.75, 1.0, 1.0)),  # white space
        # Collapsed distance 2 of 3; the longer length is 7 as written and 3 collapsed.
        ("x  y   ", "a b", (0.0, 1 - 2 / 7, 0.0)),
    ],
)
def test_the_variants_differ_at_the_edges(
    ours: str, reference: str, expected: tuple[float, float, float]
) -> None:
    found = tuple(anls(ours, [reference], variant=variant) for variant in VARIANTS)
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_nearest_reference_counts() -> None:
    (found,) = anls_measures(["abc", "q"], [["xyz", "ABC"], ["abc"]])
    assert (found.name, found.value) == ("anls", 0.5)


def test_case_may_count() -> None:
    assert anls("Truck", ["truck"], lower=False) == pytest.approx(0.8)


def test_parts_may_come_in_any_order_where_asked() -> None:
    assert comma_orderings("a, b, c")[:3] == ["a, b, c", "a, c, b", "b, a, c"]
    assert comma_orderings("1,000") == ["1,000"]
    given_order = anls_measures(["green, red"], [["red, green"]])[0].value
    any_order = anls_measures(["green, red"], [["red, green"]], any_order=True)[0].value
    assert given_order < 1.0
    assert any_order == 1.0


def test_a_long_list_keeps_its_order_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert len(comma_orderings(", ".join("abcdefgh"))) == 40320
    with caplog.at_level(logging.WARNING):
        assert comma_orderings(", ".join("abcdefghi")) == [", ".join("abcdefghi")]
        assert len(comma_orderings(", " * 100_000)) == 1
    assert "more than 8 parts" in caplog.text


@pytest.mark.parametrize(
    ("ours", "right", "is_match"),
    [
        ("5%%", "0.05", True),  # every percent sign is stripped
        ("1e2", "100", True),
        ("1_00", "100", True),  # as Python's float reads it
        ("Infinity", "infinity", False),
        ("nan", "nan", False),
        ("3", "three", False),
        ("%", "%", True),
        ("-100", "100", False),
    ],
)
def test_numbers_are_what_float_reads(ours: str, right: str, is_match: bool) -> None:
    assert is_relaxed_match(ours, right) is is_match


def test_both_chart_files_weigh_the_same() -> None:
    found = relaxed_accuracy_measures(
        ["104", "Yes", "no", "x"], ["100", "yes", "no", "y"], ["human", "aug", "aug", "aug"]
    )
    assert {one.name: one.value for one in found} == pytest.approx(
        {
            "relaxed_accuracy": (1 + 2 / 3) / 2,
            "exact_accuracy": 0.5,
            "relaxed_accuracy/aug": 2 / 3,
            "relaxed_accuracy/human": 1.0,
        }
    )
    assert [one.name for one in relaxed_accuracy_measures(["1"], ["1"])] == [
        "relaxed_accuracy",
        "exact_accuracy",
    ]


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1"):
        anls_measures(["a"], [[]])
    with pytest.raises(DataError, match="wrap it in a list"):
        anls_measures(["a"], ["abc"])
    with pytest.raises(DataError, match="big_vision, server_like, pypi"):
        anls("a", ["a"], variant="docvqa")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="only the first keeps case"):
        anls("a", ["a"], variant="pypi", lower=False)
    with pytest.raises(DataError, match="one length"):
        relaxed_accuracy_measures(["a"], [])


@settings(max_examples=30, deadline=None)
@given(SHORT, st.lists(SHORT, min_size=1, max_size=4))
def test_anls_is_bounded_perfect_on_a_reference_and_knows_no_order(
    ours: str, references: list[str]
) -> None:
    for variant in VARIANTS:
        score = anls(ours, references, variant=variant)
        assert score == 0 or 0.5 <= score <= 1
        assert anls(ours, references[::-1], variant=variant) == score
        assert anls(references[0].upper(), references, variant=variant) == 1
