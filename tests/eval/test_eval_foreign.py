"""Somebody else's predictions: nothing amiss goes unnamed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paligemma.errors import ConfigError, DataError
from paligemma.eval.foreign import match_examples, read_predictions
from paligemma.example import Example, Prediction

EXAMPLES = [Example(id=name, prefix="x", pictures=(), references=None) for name in "abc"]


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "predictions.jsonl"
    path.write_text(text)
    return path


def test_missing_extra_and_double_ids_are_named_and_counted(tmp_path: Path) -> None:
    rows = [("a", "1"), ("z", "2"), ("a", "3"), ("c", "4"), ("a", "5")]
    text = "\n".join(json.dumps({"id": name, "text": text}) for name, text in rows)
    matched, notices = match_examples(read_predictions(_file(tmp_path, text)), EXAMPLES)
    assert [one.text for one in matched] == ["1", "", "4"]
    assert matched[1].error == "no prediction"
    assert notices == [
        "1 of 3 examples have no prediction and count as empty answers: b",
        "1 predictions belong to no example and were left out: z",
        "2 further lines repeat an id and were left out: a, a",
    ]


def test_missing_predictions_can_be_refused(tmp_path: Path) -> None:
    read = read_predictions(_file(tmp_path, '{"id": "a", "text": ""}'))
    with pytest.raises(DataError, match="misses 2 of 3: b, c"):
        match_examples(read, EXAMPLES, missing="refuse")
    with pytest.raises(ConfigError, match="empty or refuse, got 'drop'"):
        match_examples(read, EXAMPLES, missing="drop")


def test_confidences_that_are_no_numbers_rank_last_and_such_boxes_go(tmp_path: Path) -> None:
    text = """{"id": "a", "text": "", "logprob": NaN, "objects": [
        {"label": "x", "box_yxyx": [0, 0, 1, 1], "score": NaN},
        {"label": "y", "box_yxyx": [0, 0, 1, 1], "score": 0.5},
        {"label": "z", "box_yxyx": [0, 0, Infinity, 1], "score": 0.5}]}"""
    read = read_predictions(_file(tmp_path, text.replace("\n", " ")))
    one = read.predictions["a"]
    assert [(item.label, item.score) for item in one.objects] == [("x", 0.0), ("y", 0.5)]
    assert one.logprob is None
    assert (read.bad_scores, read.bad_boxes) == (("a",), ("a",))
    assert match_examples(read, EXAMPLES[:1])[1] == [
        "1 predictions hold a confidence that is no number; it became 0: a",
        "1 predictions hold a box that is no number; it was left out: a",
    ]


def test_boxes_in_pixels_are_noticed(tmp_path: Path) -> None:
    row = '{"id": "a", "text": "", "objects": [{"label": "x", "box_yxyx": [12, 30, 90, 80]}]}'
    assert match_examples(read_predictions(_file(tmp_path, row)), EXAMPLES[:1])[1] == [
        "1 predictions hold a box far outside the picture; box_yxyx is in [0, 1], not pixels: a"
    ]


def test_a_list_and_numbers_as_ids_are_read_too(tmp_path: Path) -> None:
    read = read_predictions(_file(tmp_path, ' [{"id": 7, "text": "yes"}]'))
    assert read.predictions == {"7": Prediction(id="7", text="yes")}


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1e400", "NaN"])
def test_numbers_that_no_float_holds_cost_no_other_row(tmp_path: Path, number: str) -> None:
    box = '{"label": "x", "box_yxyx": [0, 0, 1, %s]}, {"label": "y", "box_yxyx": [0, 0, 1, 1]}'
    rows = [
        f'{{"id": "a", "text": "x", "logprob": {number}}}',
        f'{{"id": "b", "text": "", "objects": [{box % number}]}}',
    ]
    for text in ("\n".join(rows), f"[{', '.join(rows)}]"):
        read = read_predictions(_file(tmp_path, text))
        assert read.predictions["a"] == Prediction(id="a", text="x")
        assert [one.label for one in read.predictions["b"].objects] == ["y"]
        assert read.bad_boxes == ("b",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "at least one prediction"),
        ("[", "is no JSON"),
        ("[3]", "row 1 must be a JSON object, got 3"),
        ('{"id": "a", "answer": "x"}', "line 1 must hold an id and a text"),
        ('{"id": true, "text": ""}', "id True"),
        (r'{"id": "a\ud800", "text": ""}', r"an id must be Unicode .* got 'a\\ud800'"),
        ("[" * 100_000, "is no JSON"),
        ('{"id":' * 100_000, "line 1 is no JSON"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested 64 deep"),
        ('[{"id": "a", "text": ' + "[" * 70 + "]" * 70 + "}]", "nested 64 deep"),
        ("3", "line 1 must be a JSON object, got int"),
        ('{"id": "a", "text": "", "error": ["x"]}', "error must be text"),
    ],
)
def test_files_that_hold_no_predictions_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        read_predictions(_file(tmp_path, text))
    with pytest.raises(DataError, match="check the path"):
        read_predictions(tmp_path / "none")


def test_ids_of_another_split_are_refused(tmp_path: Path) -> None:
    read = read_predictions(_file(tmp_path, '{"id": "q1", "text": ""}'))
    with pytest.raises(DataError, match="it has q1, the split a, b, c"):
        match_examples(read, EXAMPLES)


def test_a_list_behind_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    read = read_predictions(_file(tmp_path, '\ufeff[{"id": "a", "text": "yes"}]'))
    assert read.predictions["a"].text == "yes"


def test_boxes_beyond_any_picture_go_and_pixels_stay(tmp_path: Path) -> None:
    boxes = [[0, 0, 1e300, 1e300], [10, 20, 300, 400]]
    objects = [{"label": "x", "box_yxyx": box, "score": 0.5} for box in boxes]
    read = read_predictions(
        _file(tmp_path, json.dumps({"id": "a", "text": "", "objects": objects}))
    )
    assert [one.box_yxyx for one in read.predictions["a"].objects] == [(10, 20, 300, 400)]
    assert read.bad_boxes == ("a",)
