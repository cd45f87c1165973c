"""What every metric over lists checks first."""

from __future__ import annotations

import builtins
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import levenshtein as slow_levenshtein

from paligemma.errors import DataError, MissingExtraError
from paligemma.metrics.answers import rsvqa_bin_answer
from paligemma.metrics.judgements import nes_measures
from paligemma.metrics.music import omr_measures
from paligemma.metrics.pairs import edit_distance, levenshtein, require_same_length
from paligemma.metrics.radgraph import radgraph_f1
from paligemma.metrics.ranking import ndcg
from paligemma.metrics.yes_no import mmvp_is_right

UNITS = st.lists(st.sampled_from(["", "a", "b", "<t>", "ab"]), max_size=7)


@settings(max_examples=30, deadline=None)
@given(UNITS, UNITS)
def test_edits_are_counted_in_units_or_letters(a: list[str], b: list[str]) -> None:
    for distance in (levenshtein, edit_distance):
        assert distance(a, b) == distance(b, a) == slow_levenshtein(a, b)
        texts = "".join(a), "".join(b)
        assert distance(*texts) == slow_levenshtein(*texts)


def test_lists_of_different_lengths_are_named() -> None:
    with pytest.raises(DataError, match="got 1 predictions, 2 references"):
        require_same_length("a metric", predictions=["a"], references=["a", "b"])


@pytest.mark.parametrize(
    "call",
    [
        lambda name: rsvqa_bin_answer("1", "count", resolution=name),
        lambda name: mmvp_is_right("a", "(a) x (b) y", "a", rule=name),
        lambda name: omr_measures(["a"], ["a"], cer=name),
        lambda name: nes_measures([[["Entailment"]]], ties=name),
        lambda name: nes_measures([[["Entailment"]]], nothing=name),
        lambda name: ndcg([1], [1], ties=name),
        lambda name: radgraph_f1({"entities": {}}, {"entities": {}}, name),
    ],
)
def test_an_option_of_no_known_name_is_refused(call: Callable[[str], object]) -> None:
    with pytest.raises(DataError, match=r"must be one of .*, got 'oficial'"):
        call("oficial")


def test_without_rapidfuzz_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *rest: object) -> object:
        if name.startswith("rapidfuzz"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingExtraError, match=r"paligemma\[eval\]"):
        levenshtein("a", "b")
