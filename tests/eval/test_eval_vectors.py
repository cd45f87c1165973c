"""Every expected value of the official scorers, and what a file of vectors may hold."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from paligemma.errors import DataError
from paligemma.eval.vectors import (
    VectorResult,
    check_vector,
    check_vectors,
    checks,
    read_vectors,
    summarize,
)
from paligemma.eval.vectors.structure import drawn_map, drawn_mask

VECTORS = Path(__file__).parents[1] / "metrics" / "data" / "metric_vectors.json"
METRICS = sorted(json.loads(VECTORS.read_text())["counts"])
# Vector -> why our metric differs from the scorer that it names. None does.
DIFFERENT: dict[str, str] = {}
# Where the reference is arithmetic, printed with ten digits.
EXACT = {"vqa_accuracy", "vqa_accuracy_corpus", "anls", "tallyqa", "rsvqa", "pope", "nes"}

GOOD = {"id": "a-1", "metric": "relative_quality", "predictions": {"f32": 50, "quantised": 49}}


@cache
def results() -> list[VectorResult]:
    return check_vectors(VECTORS)


def write(tmp_path: Path, *vectors: Any) -> Path:
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps({"vectors": list(vectors)}))
    return path


@pytest.mark.parametrize("metric", METRICS)
def test_our_metrics_give_what_the_official_scorers_gave(metric: str) -> None:
    own = [one for one in results() if one.metric == metric]
    assert len(own) == json.loads(VECTORS.read_text())["counts"][metric]
    failed = {one.id: one.message for one in own if not one.passed}
    assert set(failed) == {one.id for one in own} & set(DIFFERENT), failed
    if metric in EXACT:
        assert all(not one.largest_difference > 1e-9 for one in own)


def test_every_metric_of_the_reference_is_computed_and_no_other() -> None:
    assert sorted(checks()) == METRICS


def test_the_summary_counts_by_metric() -> None:
    summary = {one.metric: one for one in summarize(results())}
    assert (summary["anls"].num_passed, summary["anls"].num) == (10, 10)
    assert summary["anls"].largest_difference < 1e-9
    assert math.isnan(summary["vqa_normalize"].largest_difference)
    assert sum(one.num for one in summary.values()) == 225


def test_every_number_that_is_tampered_with_is_noticed() -> None:
    """A check that computes nothing, or compares nothing, would pass everything."""

    def tampered(expected: Any) -> Any:
        if isinstance(expected, bool):
            return not expected
        if isinstance(expected, int | float):
            return expected + 0.01
        if isinstance(expected, str):
            return f"{expected}~"
        if isinstance(expected, list):
            return [tampered(one) for one in expected] or ["more"]
        return {key: tampered(one) for key, one in expected.items()}

    def with_one_changed(expected: Any) -> list[Any]:
        if not isinstance(expected, dict):
            return [tampered(expected)]
        return [{**expected, key: tampered(one)} for key, one in expected.items()]

    known, seen = checks(), set()
    for vector in read_vectors(VECTORS):
        if vector["metric"] in seen:
            continue
        seen.add(vector["metric"])
        for expected in with_one_changed(vector["expected"]):
            result = check_vector({**vector, "expected": expected}, known)
            assert not result.passed, vector["id"]
            assert "expected" in result.message


def test_a_failure_says_where_and_by_how_much(tmp_path: Path) -> None:
    (result,) = check_vectors(write(tmp_path, {**GOOD, "expected": {"relative_percent": 98.5}}))
    assert not result.passed
    assert result.largest_difference == pytest.approx(0.5)
    assert result.message == "expected['relative_percent'] is 98.5, but got 98.0"
    (summary,) = summarize([result])
    assert summary.failures == (result,)


def test_the_tolerance_is_the_vectors_own(tmp_path: Path) -> None:
    loose = {**GOOD, "expected": {"relative_percent": 98.5}, "tolerance": 0.5}
    tight = {**GOOD, "expected": {"relative_percent": 98.0001}}
    assert [one.passed for one in check_vectors(write(tmp_path, loose, tight))] == [True, False]


def test_every_failure_of_a_metric_is_kept(tmp_path: Path) -> None:
    wrong = [{**GOOD, "id": f"v{k}", "expected": {"relative_percent": k}} for k in (97, 98, 99)]
    (summary,) = summarize(check_vectors(write(tmp_path, *wrong)))
    assert [one.id for one in summary.failures] == ["v97", "v99"]


@pytest.mark.parametrize(
    ("task", "row", "prefix", "suffix"),
    [
        ("chartqa", {"query": "how many?", "label": "3"}, "how many?", "3"),
        ("docvqa", {"question": "how many?", "answers": ["3"]}, "how many?", "3"),
        (
            "aokvqa_mc",
            {"question": "what?", "choices": ["a", "b"], "idx": 1},
            "answer en  what? choose from: a \t b",
            "b",
        ),
        (
            "aokvqa_mc",
            {"question": "what?", "choices": ["a", "b"], "correct_choice_idx": 0},
            "answer en  what? choose from: a \t b",
            "a",
        ),
        ("vsr", {"caption": "A cat.", "label": 0}, "answer en A cat.", "False"),
        ("marvl", {"caption": "A cat.", "label": True}, "answer en A cat.", "True"),
        ("nlvr2", {"sentence": "A cat.", "label": "True"}, "answer en A cat.", "True"),
    ],
)
def test_prompts_are_written_from_the_rows_of_the_data_files(
    task: str, row: dict[str, Any], prefix: str, suffix: str
) -> None:
    expected = {"prefix": prefix, "suffix": suffix}
    vector = {"id": "a", "metric": "prompt_format", "predictions": row, "expected": expected}
    assert check_vector({**vector, "params": {"task": task}}).message == ""


def test_one_bad_vector_does_not_hide_the_others(tmp_path: Path) -> None:
    unknown = {**GOOD, "metric": "meteor", "expected": 1}
    broken = {**GOOD, "metric": "pope", "predictions": 3, "expected": {}}
    refused = {**GOOD, "predictions": {"f32": 0, "quantised": 1}, "expected": {}}
    more = {**GOOD, "expected": {"speed": 1}}
    shape = {**GOOD, "expected": [98]}
    right = {**GOOD, "expected": {"relative_percent": 98}}
    found = check_vectors(write(tmp_path, unknown, broken, refused, more, shape, right))
    assert [one.passed for one in found] == [False] * 5 + [True]
    assert found[0].message == "no metric here is named 'meteor'"
    assert found[1].message.startswith("cannot be computed: ")
    assert "positive finite" in found[2].message
    assert "'speed', which is not computed here" in found[3].message
    assert "list of 1" in found[4].message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold JSON"),
        ("{", "must hold JSON"),
        ("[" * 100_000, "must hold JSON"),
        ('{"vectors": [NaN]}', "must be finite and below 1e308, got NaN"),
        ('{"vectors": [{"id": "a", "metric": "m", "prediction": 1}]}', "got 'prediction'; correct"),
        ("[]", 'a list "vectors"'),
        ('{"vectors": {}}', 'a list "vectors"'),
        ('{"vectors": []}', "at least one vector, got none"),
        ('{"vectors": [1]}', "vector 0 must be an object"),
        ('{"vectors": [{"id": 1}]}', "needs a string 'id'"),
        ('{"vectors": [{"id": "a", "metric": "m"}]}', "lacks 'predictions'"),
        ('{"vectors": [{"id": "a", "metric": "m", "predictions": 1}]}', "lacks 'expected'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vectors.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        check_vectors(path)


@pytest.mark.parametrize("field", [{"tolerance": -1}, {"tolerance": "x"}, {"params": [1]}])
def test_fields_of_another_kind_are_refused(tmp_path: Path, field: dict) -> None:
    with pytest.raises(DataError, match="needs a"):
        check_vectors(write(tmp_path, {**GOOD, "expected": 1, **field}))


def test_a_file_that_is_missing_or_huge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="cannot read"):
        check_vectors(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        check_vectors(tmp_path / "bytes.json")
    monkeypatch.setattr("paligemma.eval.vectors.MAX_BYTES", 3)
    with pytest.raises(DataError, match="may have 3 bytes"):
        check_vectors(write(tmp_path))


def test_masks_are_drawn_from_half_open_rectangles_and_disks() -> None:
    drawn = drawn_mask({"height": 3, "width": 4, "rects": [[0, 1, 2, 3]], "disks": [[2, 0, 0.5]]})
    assert drawn.astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert drawn_map({"ramp": [-1, 1]})[5, [0, 63]].tolist() == [-1, 1]
    assert drawn_map({"ramp": [-1, 1], "axis": "y"})[[0, 63], 5].tolist() == [-1, 1]
    assert drawn_map({"background": -1, "rects": [[0, 0, 1, 2, 3]]}).sum() == -64 * 64 + 8
    with pytest.raises(DataError, match="pixels"):
        drawn_mask({"height": 1 << 20, "width": 1 << 20})
