"""Boxes between pixels, normalised coordinates, bins and text."""

from __future__ import annotations

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.outputs.boxes import (
    box_iou,
    box_xyxy_px_to_yxyx,
    box_yxyx_to_xyxy_px,
    decode_boxes,
    encode_boxes,
    format_detections,
)
from paligemma.outputs.parse import parse_objects


@pytest.mark.parametrize("divisor", [1023, 1024])
def test_all_1024_bins_survive_decoding_and_encoding(divisor: int) -> None:
    bins = np.arange(1024).reshape(-1, 4)
    assert np.array_equal(encode_boxes(decode_boxes(bins, divisor=divisor), divisor=divisor), bins)


def test_coordinates_round_half_to_even_and_clip() -> None:
    box = [-0.1, 0.5 / 1023, 1.5 / 1023, 1.1]
    assert encode_boxes(box).tolist() == [0, 0, 2, 1023]


def test_rounding_happens_in_float32_as_in_the_original() -> None:
    values = (np.arange(1023, dtype=np.float32) + np.float32(0.5)) / np.float32(1023)
    in_float64 = np.clip(np.round(values.astype(np.float64) * 1023), 0, 1023)
    assert np.count_nonzero(encode_boxes(values) != in_float64) > 100


def test_the_two_divisors_differ_by_at_most_a_thousandth() -> None:
    bins = np.array([0, 256, 512, 1023])
    assert decode_boxes(bins, divisor=1023).tolist()[-1] == 1.0
    assert decode_boxes(bins, divisor=1024).tolist() == [0, 0.25, 0.5, 1023 / 1024]


def test_pixels_and_normalised_boxes_swap_their_axes() -> None:
    assert box_yxyx_to_xyxy_px((0.25, 0.5, 0.75, 1.0), (200, 100)) == (100, 25, 200, 75)
    assert box_xyxy_px_to_yxyx((100, 25, 200, 75), (200, 100)) == (0.25, 0.5, 0.75, 1.0)


def test_box_iou_of_half_overlapping_touching_swapped_and_empty_boxes() -> None:
    a = [0.0, 0.0, 1.0, 1.0]
    others = [[0, 0.5, 1, 1.5], [0, 1, 1, 2], [1, 1, 0, 0], [0.5, 0.5, 0.5, 0.5], a]
    np.testing.assert_allclose(box_iou(a, others), [1 / 3, 0, 0, 0, 1])
    assert box_iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0


def test_detections_and_segmentations_read_as_in_pre_training() -> None:
    boxes = [[0, 0.1, 0.5, 1.0], [0.2, 0.2, 0.4, 0.4]]
    assert format_detections(boxes, ["cat", "3.5mm jack"]) == (
        "<loc0000><loc0102><loc0512><loc1023> cat ; <loc0205><loc0205><loc0409><loc0409> 3.5mm jack"
    )
    text = format_detections(boxes[:1], [None], [range(16)])
    assert text.endswith("<loc1023>" + "".join(f"<seg{i:03d}>" for i in range(16)))
    assert format_detections(np.zeros((0, 4)), []) == ""
    for label in ("<loc1024>", "x <seg128>"):  # plain text to the parser, too
        text = format_detections(boxes[:1], [label])
        assert [one.label for one in parse_objects(text).objects] == [label]


@pytest.mark.parametrize("label", ["", " cat", "cat ", "a ; b", "x<loc0001>", "<seg001>", "cat\n"])
def test_a_label_that_could_not_be_read_back_is_refused(label: str) -> None:
    with pytest.raises(DataError, match="label must be"):
        format_detections([[0, 0, 1, 1]], [label])


@pytest.mark.parametrize("seg", [(1, 2), (128,) * 16, (-1,) * 16])
def test_codewords_without_a_token_are_refused(seg: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="16 codewords"):
        format_detections([[0, 0, 1, 1]], ["cat"], [seg])


def test_unequal_lengths_and_infinite_coordinates_are_refused() -> None:
    with pytest.raises(DataError, match="1 boxes, 2 labels"):
        format_detections([[0, 0, 1, 1]], ["a", "b"])
    with pytest.raises(DataError, match="finite"):
        encode_boxes([0, 0, np.inf, 1])
