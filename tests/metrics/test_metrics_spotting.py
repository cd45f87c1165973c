"""Word spotting: HierText's numbers, don't-care regions, crossing outlines, lenient reading."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError, MissingExtraError
from paligemma.metrics.spotting import count_words, spotting_measures

VECTORS = [
    v
    for v in json.loads((Path(__file__).parent / "data/metric_vectors.json").read_text())["vectors"]
    if v["metric"] == "text_spotting_hiertext"
]
SUFFIXES = {
    "Recall": "recall",
    "Precision": "precision",
    "Fscore": "f1",
    "Tightness": "tightness",
    "PQ": "pq",
}


def _word(
    x0: float, y0: float, x1: float, y1: float, text: str = "a", **fields: Any
) -> dict[str, Any]:
    return {"vertices": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], "text": text, **fields}


def _values(*arguments: Any, **options: Any) -> dict[str, float]:
    return {m.name: m.value for m in spotting_measures(*arguments, **options)}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_figures_are_those_of_hiertext(vector: dict[str, Any]) -> None:
    pair, expected = (vector["predictions"], vector["references"]), vector["expected"]
    counts = count_words(*pair)
    own = {
        "tp_det": counts.found,
        "tp_e2e": counts.read,
        "num_gt": counts.num_true,
        "num_pred": counts.num_predicted,
    }
    assert {k: v.sum() for k, v in own.items()} == {k: expected[k] for k in own}
    values = _values(*pair)
    for kind, prefix in (("Det", "det"), ("E2E", "e2e")):
        for name, suffix in SUFFIXES.items():
            wanted = expected[f"{kind}-{name}"]
            assert values[f"{prefix}_{suffix}"] == pytest.approx(wanted, abs=1e-9), (kind, name)


def test_there_are_six_official_numbers() -> None:
    assert len(VECTORS) == 6


_box = st.tuples(*[st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20)])
_words = st.lists(
    st.builds(
        lambda box, text: _word(box[0], box[1], box[0] + box[2], box[1] + box[3], text),
        _box,
        st.sampled_from(["a", "b"]),
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(_words, _words), min_size=1, max_size=4), st.randoms())
def test_order_of_images_does_not_matter_and_figures_lie_in_bounds(
    images: list[tuple[Any, Any]], random: Any
) -> None:
    images = [*images, ([], [_word(0, 0, 5, 5)])]
    values = _values([p for p, _ in images], [t for _, t in images])
    random.shuffle(images)
    assert _values([p for p, _ in images], [t for _, t in images]) == pytest.approx(values)
    assert all(0 <= value <= 1 for value in values.values())
    assert all(values[f"e2e_{name}"] <= values[f"det_{name}"] for name in ("recall", "precision"))


def test_words_apart_that_are_found_and_read_score_one() -> None:
    words = [_word(10 * k, 0, 10 * k + 8, 5, text) for k, text in enumerate("abc")]
    values = _values([words], [words])
    assert values == pytest.approx(dict.fromkeys(values, 1.0), abs=1e-6)


def test_a_prediction_half_inside_a_dont_care_region_is_kept_and_more_is_dropped() -> None:
    truth = [_word(0, 0, 10, 10, legible=False), _word(50, 50, 60, 60)]
    half, more = _word(5, 0, 15, 10), _word(4, 0, 14, 10)
    assert count_words([[half]], [truth]).num_predicted.tolist() == [1]
    assert count_words([[more]], [truth]).num_predicted.tolist() == [0]


def test_crossing_outlines_are_repaired_and_words_without_area_count() -> None:
    # A bow tie covers half of its square.
    bow = {"vertices": [[0, 0], [10, 10], [10, 0], [0, 10]], "text": "a"}
    line = {"vertices": [[0, 0], [10, 10], [20, 20]], "text": "a"}
    point = _word(3, 3, 3, 3)
    counts = count_words([[bow, line, point]], [[bow, line]])
    assert counts.found.tolist() == [1]
    assert counts.num_true.tolist() == [2]
    assert counts.num_predicted.tolist() == [3]
    assert counts.num_empty.tolist() == [2]
    assert counts.found_iou[0] == pytest.approx(1.0, abs=1e-6)


def test_a_slanted_word_may_be_replaced_by_the_box_around_it() -> None:
    slanted = {"vertices": [[10, 0], [20, 10], [10, 20], [0, 10]], "text": "a"}
    upright = _word(0, 0, 20, 20)
    assert _values([[upright]], [[slanted]])["det_f1"] == 0.0
    assert _values([[upright]], [[slanted]], axis_aligned=True)["det_f1"] == 1.0


def test_equal_overlaps_go_to_the_first_and_each_word_is_found_once() -> None:
    word = _word(0, 0, 10, 10)
    counts = count_words([[word, word]], [[word, word]])
    assert (counts.found[0], counts.num_predicted[0]) == (1, 2)


def test_the_interval_adds_counts_of_whole_images() -> None:
    word = _word(0, 0, 10, 10)
    f1 = spotting_measures([[word], [], [word]], [[word], [word], []])[0]
    # Weights (2, 1, 0): two of two predictions and two of three words.
    assert f1.statistic(np.array([2, 1, 0])) == pytest.approx(2 * 2 / (2 + 3))
    low, high = f1.interval()
    assert 0 <= low < f1.value < high <= 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "vertices"),
        ({"vertices": [[0, 0], [1, 1]]}, "3 to 1000 vertices"),
        ({"vertices": [[0, 0], [1, 1], [float("nan"), 2]]}, "finite"),
        ({"vertices": [[0, 0, 0]] * 4}, "two numbers"),
        ({"vertices": "no"}, "vertices"),
        ({"vertices": [[0, 0]] * 1001}, "3 to 1000 vertices"),
    ],
)
def test_malformed_words_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        count_words([[row]], [[]])
    with pytest.raises(DataError, match="image 1"):
        count_words([[], []], [[], [row]])


def test_a_side_without_words_scores_1_as_in_the_original_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth = [[_word(0, 0, 9, 9, legible=False)], []]
    silent = {one.name: one.value for one in spotting_measures([[], []], truth)}
    assert "none of 2 images has a legible word" in caplog.text
    assert (silent["e2e_recall"], silent["e2e_precision"], silent["e2e_f1"]) == (1, 1, 1)
    said = [[], [_word(0, 0, 9, 9)]]
    loud = {one.name: one.value for one in spotting_measures(said, truth)}
    assert (loud["det_recall"], loud["det_precision"], loud["det_f1"]) == (1, 0, 0)


def test_spotting_needs_one_list_of_words_an_image() -> None:
    with pytest.raises(DataError, match="lists of one length"):
        spotting_measures([], [[]])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(
        MissingExtraError, match=r"needs shapely; run pip install 'paligemma\[eval\]'"
    ):
        count_words([[]], [[]])
