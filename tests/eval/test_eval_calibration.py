"""Temperatures and thresholds: against a fine search, on confidences of known honesty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import boxes, found, quiz
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import ConfigError, DataError
from paligemma.eval.calibration import (
    best_threshold,
    calibrate,
    fit_temperature,
    held_out,
    negative_log_likelihood,
    reliability,
)
from paligemma.eval.outcomes import has_objects, object_outcomes, text_outcomes, true_objects
from paligemma.outputs.calibration import (
    Calibration,
    ObjectCalibration,
    TextCalibration,
    load_calibration,
    save_calibration,
    tempered,
)
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import Detection, TextAnswer

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT, RIGHT = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)


def drawn(temperature: float, num: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose honest version is themselves at this temperature."""
    rng = np.random.default_rng(0)
    confidence = rng.beta(2, 1, num)
    return confidence, rng.random(num) < tempered(confidence, temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_hits_is_found(temperature: float) -> None:
    confidence, hits = drawn(temperature)
    assert fit_temperature(confidence, hits) == pytest.approx(temperature, rel=0.05)


def test_no_temperature_of_a_fine_search_is_likelier() -> None:
    confidence, hits = drawn(1.7, 300)
    fitted = fit_temperature(confidence, hits)
    least = min(negative_log_likelihood(confidence, hits, t) for t in np.geomspace(0.05, 20, 4000))
    assert negative_log_likelihood(confidence, hits, fitted) <= least + 1e-12


def test_the_likelihood_is_the_textbook_one() -> None:
    # Hit with 0.8, miss with 0.3: -(ln 0.8 + ln 0.7) / 2.
    value = negative_log_likelihood(np.array([0.8, 0.3]), np.array([True, False]), 1.0)
    assert value == pytest.approx(-(np.log(0.8) + np.log(0.7)) / 2)


def test_tempering_divides_log_odds() -> None:
    # Odds of 0.8 are 4; at temperature 2 they are 2, which is 2/3.
    assert float(tempered(0.8, 2.0)) == pytest.approx(2 / 3)
    assert float(tempered(0.5, 7.0)) == 0.5
    assert float(tempered(1.0, 1.0)) == pytest.approx(1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.05, 20))
@settings(max_examples=30, deadline=None)
def test_tempering_keeps_the_order_and_stays_within_bounds(
    confidence: list[float], temperature: float
) -> None:
    out = tempered(np.sort(confidence), temperature)
    assert ((out >= 0) & (out <= 1)).all()
    assert (np.diff(out) >= 0).all()


def test_reliability_of_a_worked_example() -> None:
    # Two bins of 0.5: mean confidence 0.2 against 0 right, 0.8 against 2 of 3.
    confidence = np.array([0.2, 0.7, 0.8, 0.9])
    found = reliability(confidence, np.array([False, True, True, False]), num_bins=2)
    assert [one.num for one in found.bins] == [1, 3]
    assert found.ece == pytest.approx(0.25 * 0.2 + 0.75 * abs(0.8 - 2 / 3))
    assert found.brier == pytest.approx((0.04 + 0.09 + 0.04 + 0.81) / 4)
    assert sum(one.num for one in found.bins) == found.num == 4


def test_a_confidence_of_one_falls_into_the_last_bin() -> None:
    found = reliability(np.array([1.0, 0.0]), np.array([True, False]), num_bins=10)
    assert (found.bins[-1].num, found.bins[0].num, found.ece) == (1, 1, 0.0)


@pytest.mark.parametrize("hits", [[True, True], [False, False]])
def test_a_temperature_needs_hits_and_misses(hits: list[bool]) -> None:
    with pytest.raises(DataError, match="fitted on hits and misses"):
        fit_temperature(np.array([0.5, 0.6]), np.array(hits))


def test_the_best_f1_threshold_of_a_worked_example() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    hits = np.array([True, True, False, True])
    # F1 at each cut, with four true objects: 2/5, 4/6, 4/7, 6/8.
    assert best_threshold(confidence, hits, 4) == (0.6, pytest.approx(0.75))
    # With two true objects cutting after the second is best: 4/4.
    assert best_threshold(confidence, hits, 2) == (0.8, pytest.approx(1.0))


def test_a_wanted_precision_takes_the_lowest_threshold_that_has_it() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    hits = np.array([True, False, True, True])
    # Precision at each cut: 1, 1/2, 2/3, 3/4.
    assert best_threshold(confidence, hits, 3, precision=0.7) == (0.6, 0.75)
    assert best_threshold(confidence, hits, 3, precision=0.9) == (0.9, 1.0)
    never = best_threshold(confidence, np.array([False, True, False, False]), 3, precision=0.9)
    assert never == (2.0, 0.0)


def test_objects_of_one_confidence_stand_or_fall_together() -> None:
    threshold, f1 = best_threshold(np.array([0.5, 0.5]), np.array([True, False]), 1)
    assert (threshold, f1) == (0.5, pytest.approx(2 / 3))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_no_other_threshold_has_a_better_f1(data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 12))
    confidence = np.array(data.draw(st.lists(st.integers(0, 5), min_size=num, max_size=num))) / 5
    hits = np.array(data.draw(st.lists(st.booleans(), min_size=num, max_size=num)))
    num_true = int(hits.sum()) + data.draw(st.integers(0, 3))
    threshold, best = best_threshold(confidence, hits, num_true)
    every = [0.0]
    for cut in np.unique(confidence):
        shown = confidence >= cut
        every.append(2 * hits[shown].sum() / (shown.sum() + num_true))
    assert best == pytest.approx(max(every))
    if threshold <= 1:
        shown = confidence >= threshold
        assert 2 * hits[shown].sum() / (shown.sum() + num_true) == pytest.approx(best)


def test_a_box_hits_the_free_object_of_its_label_that_it_overlaps_most() -> None:
    scored = boxes(
        [[("cat", LEFT), ("cat", RIGHT)], [("dog", WHOLE)]],
        [
            # The surest takes LEFT; the second box on LEFT misses; RIGHT is called a dog.
            [found("cat", LEFT, 0.6), found("cat", LEFT, 0.9), found("dog", RIGHT, 0.5)],
            [found("dog", (0.0, 0.0, 1.0, 0.5), 0.7), found("dog", WHOLE, 0.2)],
        ],
    )
    outcomes = object_outcomes(scored)
    rows = sorted(zip(outcomes.confidence, outcomes.is_hit, outcomes.label, strict=True))
    assert [(round(float(p), 2), bool(hit), label) for p, hit, label in rows] == [
        (0.2, False, "dog"),
        (0.5, False, "dog"),
        (0.6, False, "cat"),
        # An overlap of exactly one half is enough.
        (0.7, True, "dog"),
        (0.9, True, "cat"),
    ]
    assert outcomes.num_true == {"cat": 2, "dog": 1}


def test_a_box_over_an_ignored_region_is_neither_hit_nor_miss() -> None:
    crowd = {"label": "cat", "box_yxyx": list(WHOLE), "is_crowd": True}
    truth = true_objects({"objects": [crowd]})
    assert truth is not None
    assert truth[0].is_ignored
    from paligemma.eval.outcomes import matched

    assert matched([found("cat", WHOLE, 0.9), found("cat", WHOLE, 0.8)], truth) == []


@pytest.mark.parametrize("references", ["yes", ["yes"], {"answers": ["a"]}, {"objects": [1]}])
def test_references_in_words_hold_no_objects(references: Any) -> None:
    assert true_objects(references) is None


def test_answers_in_words_are_right_from_half_of_the_score_on() -> None:
    scored = quiz(["a", "b", "c"], ["a", "x", "c"], confidence=[0.9, 0.8, 0.1])
    outcomes = text_outcomes(scored)
    assert outcomes.is_hit.tolist() == [True, False, True]
    assert outcomes.confidence == pytest.approx([0.9, 0.8, 0.1])
    assert not has_objects(scored)


def test_answers_without_any_box_to_prompts_for_boxes_are_no_words() -> None:
    assert has_objects(boxes([[("cat", LEFT)], [("dog", WHOLE)]], [[], []]))


def test_answers_without_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="no answer has one"):
        text_outcomes(quiz(["a"], ["a"]))


def overconfident() -> Any:
    """Cats are right half of the time, dogs always; both are said with 0.95."""
    truth, said = [], []
    for k in range(40):
        truth.append([("cat", LEFT), ("dog", RIGHT)])
        is_right = k % 4 < 2
        cat = found("cat", LEFT if is_right else RIGHT, 0.95 if is_right else 0.93)
        said.append([cat, found("dog", RIGHT, 0.9)])
    return boxes(truth, said)


def test_calibrating_boxes_fits_temperature_and_a_threshold_a_label() -> None:
    fitted = calibrate(overconfident()).objects
    assert fitted is not None
    # 60 of 80 are right while 0.92 is said on average.
    assert fitted.temperature > 1.2
    assert set(fitted.thresholds) == {"cat", "dog"}
    assert fitted.thresholds["cat"] == pytest.approx(float(tempered(0.95, fitted.temperature)))
    assert fitted.thresholds["dog"] == pytest.approx(float(tempered(0.9, fitted.temperature)))
    fit = fitted.fitted_on
    assert (fit["num_hits"], fit["num_true"], fit["goal"]) == (60, 80, "best F1 at IoU 0.5")
    assert fit["held_out"]["nll"] < fit["before"]["nll"]


def test_fitting_one_half_never_sees_the_other() -> None:
    outcomes = object_outcomes(overconfident())
    assert held_out(outcomes) is not None
    # Odd pictures hold no miss at all, so that nothing can be fitted on them.
    truth = [[("cat", WHOLE)]] * 4
    said = [[found("cat", WHOLE if k % 2 else (0, 0, 0.1, 0.1), 0.7)] for k in range(4)]
    assert held_out(object_outcomes(boxes(truth, said))) is None


def detections(*items: tuple[str | None, float | None]) -> Detections:
    made = tuple(
        Detection(label=label, box_yxyx=WHOLE, image_wh=(10, 10), score=score)
        for label, score in items
    )
    return Detections(items=made, image_wh=(10, 10))


def test_calibrated_detections_keep_what_reaches_its_threshold() -> None:
    calibration = Calibration(
        objects=ObjectCalibration(
            temperature=2.0, thresholds={"cat": 0.6, "dog": 2.0}, default_threshold=0.7
        )
    )
    found = detections(("cat", 0.8), ("cat", 0.6), ("dog", 0.99), ("owl", 0.8), (None, None))
    kept = calibration.detections(found)
    # 0.8 becomes 2/3: enough for a cat, not for an owl; no dog is ever shown.
    assert [(one.label, one.score) for one in kept] == [("cat", pytest.approx(2 / 3)), (None, None)]


def test_a_calibrated_answer_has_a_tempered_score() -> None:
    calibration = Calibration(text=TextCalibration(temperature=2.0))
    assert calibration.answer(TextAnswer(text="a", score=0.8)).score == pytest.approx(2 / 3)
    assert calibration.answer(TextAnswer(text="a")).score is None
    with pytest.raises(DataError, match="nothing about boxes"):
        calibration.detections(detections())
    with pytest.raises(DataError, match="nothing about answers in words"):
        Calibration().answer(TextAnswer(text="a"))


def test_a_calibration_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    fitted = calibrate(overconfident())
    path = save_calibration(fitted, tmp_path)
    assert path == tmp_path / "calibration.json"
    assert load_calibration(tmp_path) == load_calibration(path) == fitted
    assert [one.name for one in tmp_path.iterdir()] == ["calibration.json"]


def test_the_other_half_of_an_earlier_calibration_stays(tmp_path: Path) -> None:
    words = calibrate(quiz(["a", "b", "c"], ["a", "x", "c"], confidence=[0.9, 0.8, 0.7]))
    both = calibrate(overconfident(), before=words)
    assert both.text == words.text
    assert both.objects is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "must have format 1, got 2"),
        ({"colour": "red"}, r"has besides \['colour'\]"),
        ({"text": {}}, r"text must hold temperature, misses \['temperature'\]"),
        ({"text": {"temperature": 0.0}}, r"text.temperature must be a number in \[0.05, 20\]"),
        ({"text": {"temperature": True}}, "got True"),
        (
            {"objects": {"temperature": 1, "default_threshold": 0, "thresholds": {"cat": "x"}}},
            r"thresholds\['cat'\] must be a number in \[0, 2\], got 'x'",
        ),
        ({"objects": []}, "objects must be a JSON object, got list"),
    ],
)
def test_a_damaged_calibration_is_refused_by_field(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"format": 1} | change))
    with pytest.raises(DataError, match=words):
        load_calibration(path)


def test_a_calibration_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="eval calibrate` writes it"):
        load_calibration(tmp_path / "none.json")
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(DataError, match="must be a readable JSON file"):
        load_calibration(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a place that can be written"):
        save_calibration(Calibration(), tmp_path / "no" / "where.json")


def test_a_precision_out_of_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"precision must lie in \(0, 1\], got 1.5"):
        calibrate(overconfident(), precision=1.5)
