"""Detections as a sequence: selected, shown, numbered; one thing found twice stays once."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.errors import ConfigError
from paligemma.outputs.detections import Detections, class_names, coco_dataset
from paligemma.outputs.palette import label_colours
from paligemma.outputs.types import Detection

WH = (100, 100)


def _found(*rows: tuple[str, tuple[float, float, float, float], float | None]) -> Detections:
    items = tuple(
        Detection(label=label, box_yxyx=box, image_wh=WH, score=score) for label, box, score in rows
    )
    return Detections(items=items, image_wh=WH)


LEFT, SHIFTED, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.0, 0.1, 0.4, 0.5), (0.5, 0.5, 0.9, 0.9)


def _kept(found: Detections, *options: float) -> list[tuple[Any, Any]]:
    return [(d.label, d.score) for d in found.distinct(*options)]


def test_the_likelier_of_two_overlapping_boxes_of_one_label_stays_in_place() -> None:
    # The first two share 0.3 of 0.5: an overlap of 0.6.
    found = _found(("a", LEFT, 0.2), ("a", RIGHT, 0.1), ("a", SHIFTED, 0.9), ("b", LEFT, 0.1))
    assert _kept(found) == [("a", 0.1), ("a", 0.9), ("b", 0.1)]
    assert _kept(found, 0.59) == [("a", 0.1), ("a", 0.9), ("b", 0.1)]
    assert len(found.distinct(0.61)) == 4


def test_a_chain_loses_only_what_overlaps_a_box_that_stays() -> None:
    last = (0.0, 0.2, 0.4, 0.6)
    chain = _found(("a", LEFT, 0.9), ("a", SHIFTED, 0.8), ("a", last, 0.7))
    assert _kept(chain) == [("a", 0.9), ("a", 0.7)]


def test_without_confidences_the_first_stays_and_a_scored_box_goes_before() -> None:
    assert _kept(_found(("a", LEFT, None), ("a", LEFT, None))) == [("a", None)]
    assert _kept(_found(("a", LEFT, None), ("a", LEFT, 0.1))) == [("a", 0.1)]


def test_empty_and_swapped_boxes_stay_and_displace_nothing() -> None:
    empty, swapped = (0.1, 0.1, 0.1, 0.3), (0.4, 0.4, 0.0, 0.0)
    found = _found(("a", empty, 0.5), ("a", LEFT, 0.5), ("a", empty, 0.5), ("a", swapped, 1.0))
    assert len(found.distinct(0.0)) == 4
    assert len(_found().distinct()) == 0


@pytest.mark.parametrize("overlap", [-0.1, 1.1, float("nan"), "half"])
def test_an_overlap_out_of_range_is_refused(overlap: Any) -> None:
    with pytest.raises(ConfigError, match=r"intersection over union in \[0, 1\]"):
        _found().distinct(overlap)


def _pets() -> Detections:
    rows = [("cat", LEFT, 0.9), ("dog", SHIFTED, 0.4), ("cat", RIGHT, None), ("bee", RIGHT, 0.7)]
    return replace(_found(*rows), asked_labels=("dog", "cat"), text="all", rest="more")


def _scores(found: Detections) -> list[float | None]:
    return [item.score for item in found]


@pytest.mark.parametrize(
    ("index", "scores"),
    [
        (slice(1, 3), [0.4, None]),
        (slice(None, None, -2), [0.7, 0.4]),
        ([True, False, False, True], [0.9, 0.7]),
        (np.array([False, True, False, False]), [0.4]),
        ([3, 0, -1], [0.7, 0.9, 0.7]),
        (np.array([1]), [0.4]),
        ([], []),
        ([False] * 4, []),
    ],
)
def test_slices_masks_and_positions_give_detections(index: Any, scores: list[Any]) -> None:
    pets = _pets()
    chosen = pets[index]
    assert isinstance(chosen, Detections)
    assert _scores(chosen) == scores
    assert (chosen.image_wh, chosen.text, chosen.rest) == (WH, "all", "more")
    assert chosen.class_names[:2] == ("dog", "cat")  # the classes are still those of the question


def test_one_position_gives_one_detection() -> None:
    pets = _pets()
    assert pets[0] is pets[-4] is pets[np.argmax([0.9, 0.4])] is pets.items[0]
    with pytest.raises(IndexError):
        pets[4]
    assert next(reversed(pets)) is pets[3]


@pytest.mark.parametrize("index", [[True, False], [4], [-5], [0.5], "cat", [[0]], True, None])
def test_an_index_of_another_kind_is_refused_with_the_rule(index: Any) -> None:
    with pytest.raises(IndexError, match=r"4 booleans or a list of positions below 4, got"):
        _pets()[index]


def test_the_columns_are_arrays_to_compare() -> None:
    pets = _pets()
    assert pets.xyxy.tolist() == [list(item.box_xyxy_px) for item in pets]
    assert pets.labels.tolist() == ["cat", "dog", "cat", "bee"]
    assert np.array_equal(pets.scores, [0.9, 0.4, np.nan, 0.7], equal_nan=True)
    assert _scores(pets[pets.labels == "cat"]) == [0.9, None]
    assert _scores(pets[pets.scores > 0.5]) == [0.9, 0.7]
    nothing = pets[:0]
    assert (nothing.xyxy.shape, nothing.labels.shape, nothing.scores.shape) == ((0, 4), (0,), (0,))
    assert len(nothing[nothing.labels == "cat"]) == 0


def test_a_filter_takes_labels_a_confidence_or_both() -> None:
    pets = _pets()
    assert _scores(pets.filter(label="cat")) == [0.9, None]
    assert _scores(pets.filter(label=["bee", "dog"])) == [0.4, 0.7]
    assert _scores(pets.filter(score=0.5)) == _scores(pets.above(0.5)) == [0.9, None, 0.7]
    assert _scores(pets.filter(label="dog", score=0.5)) == []
    assert _scores(pets.filter()) == _scores(pets)
    unnamed = replace(pets, items=(replace(pets[0], label=None),))
    assert len(unnamed.filter(label="object")) == 1
    with pytest.raises(ConfigError, match=r"a confidence in \[0, 1\]"):
        pets.filter(score=50)


def test_the_repr_is_one_line_of_count_size_and_labels() -> None:
    pets = replace(_pets(), open_picture=lambda: np.zeros((100, 100, 3), np.uint8))
    assert repr(pets) == "Detections(4 objects in 100x100 px: 2 'cat', 1 'dog', 1 'bee')"
    assert repr(pets[:1]) == "Detections(1 object in 100x100 px: 1 'cat')"
    assert repr(pets[:0]) == "Detections(0 objects in 100x100 px)"
    many = _found(*[(f"label {n} " + "x" * 900, LEFT, 0.5) for n in range(50)])
    assert repr(many).endswith("and 44 more labels)")
    assert len(repr(many)) < 400
    assert repr(pets[0]) == "Detection('cat', score=0.9, box_xyxy_px=(0.0, 0.0, 40.0, 40.0))"


def test_a_notebook_shows_the_picture_with_its_boxes_no_larger_than_a_screen() -> None:
    pets = _pets()
    assert pets._repr_png_() is None  # the picture is unknown, so the notebook shows the repr
    shown = replace(pets, open_picture=lambda: np.zeros((100, 100, 3), np.uint8))._repr_png_()
    assert shown is not None
    image = Image.open(io.BytesIO(shown))
    assert image.format == "PNG"
    assert len(image.getcolors(1 << 24)) > 100  # boxes and plates, not the black picture alone
    items = tuple(replace(item, image_wh=(3000, 2000)) for item in pets)
    large = replace(
        pets,
        items=items,
        image_wh=(3000, 2000),
        open_picture=lambda: np.zeros((2000, 3000, 3), np.uint8),
    )
    assert max(Image.open(io.BytesIO(large._repr_png_() or b"")).size) == 1280


def test_class_numbers_are_those_of_the_question_in_every_picture() -> None:
    first = _pets()[:2]
    second = first.filter(label="cat")
    assert first.class_names == second.class_names == ("dog", "cat")
    assert [line[0] for line in first.to_yolo().splitlines()] == ["1", "0"]
    assert [line[0] for line in second.to_yolo().splitlines()] == ["1"]
    assert [record["category_id"] for record in first.to_coco()] == [2, 1]
    assert [record["category_id"] for record in second.to_coco()] == [2]


def test_supervision_gets_the_class_numbers_of_the_question() -> None:
    pytest.importorskip("supervision")
    assert _pets()[:2].to_supervision().class_id.tolist() == [1, 0]


def test_labels_that_nobody_asked_for_follow_and_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert _pets()[:2].to_yolo()
        assert caplog.text == ""
        assert [line[0] for line in _pets().to_yolo().splitlines()] == ["1", "0", "1", "2"]
    assert "did not ask for ['bee']" in caplog.text
    assert "pass class_names" in caplog.text
    # In alphabetical order, so that no order of objects changes the numbers; the asked come first.
    unasked = replace(_pets(), asked_labels=("wasp",))
    assert unasked.class_names == unasked[::-1].class_names == ("wasp", "bee", "cat", "dog")


def test_a_dataset_numbers_the_labels_of_all_questions() -> None:
    other = replace(_pets()[3:], asked_labels=("cat", "ant"))
    assert class_names([_pets()[:2], other]) == ("dog", "cat", "ant", "bee")
    data = coco_dataset([("a.png", _pets()[:2]), ("b.png", other)])
    assert [one["name"] for one in data["categories"]] == ["dog", "cat", "ant", "bee"]
    assert [one["category_id"] for one in data["annotations"]] == [2, 1, 4]


def test_a_label_keeps_its_colour_in_every_picture_of_one_question() -> None:
    black = np.zeros((100, 100, 3), np.uint8)
    both, cats = (
        {colour for _, colour in found.draw(black).getcolors(1 << 24) or []}
        for found in (_pets()[:2], _pets()[:1])
    )
    colours = label_colours(["dog", "cat"])
    assert set(colours.values()) <= both
    assert colours["cat"] in cats
    assert colours["dog"] not in cats
