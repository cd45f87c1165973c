"""Error rates of kern: units, pooling, variants, ground truth."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.metrics.music import kern_symbols, omr_measures, prepare_kern

KERN = st.text(st.sampled_from("4cD \t\n=*·"), max_size=12)


def values(measures: list) -> dict[str, float]:
    return {one.name: one.value for one in measures}


def test_tabs_and_newlines_are_symbols_and_double_spaces_hold_an_empty_one() -> None:
    assert kern_symbols("4c\t4e  4g\n=") == ["4c", "<t>", "4e", "", "4g", "<b>", "="]
    assert kern_symbols("") == [""]


def test_rates_pool_edits_over_the_corpus() -> None:
    found = omr_measures(["4c\t4e", "4d"], ["4c\t4e\n4f\t4g", "4d"])
    assert values(found) == pytest.approx({"cer": 6 / 13, "ser": 4 / 8, "ler": 1 / 3})
    assert all(one.is_error and one.scale == 100 for one in found)


def test_the_older_scorer_left_spaces_out() -> None:
    assert values(omr_measures(["4c 4e"], ["4c4e"]))["cer"] == 0.25
    assert values(omr_measures(["4c 4e"], ["4c4e"], cer="publication_era"))["cer"] == 0.0


def test_bar_numbers_and_separators_are_taken_out() -> None:
    raw = "\n 4·c\t=12\n=3:|!\t4e 5 \n"
    assert prepare_kern(raw) == "4c\t=\n=:|!\t4e 5"


def test_a_reference_without_characters_has_no_character_rate() -> None:
    assert values(omr_measures(["4c"], [""])) == {"ser": 1.0, "ler": 1.0}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(KERN, KERN), min_size=1, max_size=5))
def test_rates_are_zero_on_the_truth_and_know_no_order(rows: list[tuple[str, str]]) -> None:
    ours, truth = [list(side) for side in zip(*rows, strict=True)]
    assert set(values(omr_measures(truth, truth)).values()) == {0.0}
    found = values(omr_measures(ours, truth))
    assert all(one >= 0 for one in found.values())
    assert values(omr_measures(ours[::-1], truth[::-1])) == pytest.approx(found)
