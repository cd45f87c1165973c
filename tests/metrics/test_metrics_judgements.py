"""NES: majorities, ties and sentences without anything to assess."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.judgements import RATER_LABELS, nes_measures, sentence_verdict

E, N, C, X = RATER_LABELS
RATERS = st.lists(st.sampled_from(RATER_LABELS), min_size=1, max_size=5)


def _nes(judgements: Any, **rules: Any) -> float:
    return nes_measures(judgements, **rules)[0].value


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [
        ([E, E, E, N, C], "entailed"),
        ([N, N, C, C, E], "non_entailed"),  # both say it is not entailed
        ([X, X, X, E, E], "nothing"),
        ([X, X, E, E, C], "entailed"),
        ([E, E, N, N, C], "non_entailed"),  # a tie, against the caption by default
    ],
)
def test_the_majority_decides(labels: list[str], verdict: str) -> None:
    assert sentence_verdict(labels) == verdict


def test_ties_go_by_name() -> None:
    tie = [[[E, E, N, N, C], [E, E, E, E, E]]]
    assert _nes(tie) == 0.5
    assert _nes(tie, ties="entailed") == 0.0
    assert _nes(tie, ties="left_out") == 0.0
    assert sentence_verdict([E, C], ties="left_out") is None
    with pytest.raises(DataError, match="without examples"):
        _nes([[[E, C]]], ties="left_out")


def test_sentences_without_anything_to_assess_go_by_name() -> None:
    judged = [[[N] * 5, [X] * 5]]
    assert _nes(judged) == 1.0
    assert _nes(judged, nothing="counted") == 0.5


def test_lengths_are_reported_beside_it() -> None:
    found = nes_measures([[[E], [N]], [[E]]], ["A dog. It runs.", "A cat."])
    assert {one.name: one.value for one in found} == pytest.approx(
        {"nes": 1 / 3, "sentences": 1.5, "characters": 10.5}
    )
    assert found[0].is_error
    assert found[1].scale == 1.0


def test_unknown_and_missing_labels_are_refused() -> None:
    with pytest.raises(DataError, match="'entailment'"):
        _nes([[["entailment"]]])
    with pytest.raises(DataError, match="got none"):
        _nes([[[]]])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(RATERS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_share_is_bounded_and_knows_no_order(images: list[list[list[str]]]) -> None:
    images = [*images, [[E]]]
    score = _nes(images)
    assert 0 <= score <= 1
    turned = [[labels[::-1] for labels in image[::-1]] for image in images[::-1]]
    assert _nes(turned) == pytest.approx(score)
    assert _nes(images, ties="entailed") <= score
    assert _nes([[[E] * len(labels) for labels in image] for image in images]) == 0
