"""One thing found twice is shown once."""

from __future__ import annotations

from typing import Any

import pytest

from paligemma.errors import ConfigError
from paligemma.outputs.detections import Detections
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
