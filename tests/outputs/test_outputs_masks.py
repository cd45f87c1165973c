"""Masks pasted into boxes, as run lengths and as polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from paligemma.errors import DataError
from paligemma.outputs.contours import polygons, ring_area, simplify_ring, trace_rings
from paligemma.outputs.masks import MaskRegion, crop_mask, mask_iou, paste_mask
from paligemma.outputs.rle import decode_rle, encode_rle

# pycocotools converts its decoded masks in a way that NumPy 2 warns of.
coco_decodes = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda hw: st.lists(st.booleans(), min_size=hw[0] * hw[1], max_size=hw[0] * hw[1]).map(
        lambda bits: np.array(bits, bool).reshape(hw)
    )
)


def disc(size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return np.hypot(y, x) < radius


def test_a_mask_is_pasted_at_truncated_edges_where_its_values_are_positive() -> None:
    values = np.full((64, 64), -1.0, np.float32)
    values[:, 32:] = 1.0
    region = paste_mask(values, (0.29, 0.1, 0.99, 0.9), (10, 10))
    assert region is not None
    expected = np.zeros((10, 10), bool)
    expected[2:9, 5:9] = True
    assert np.array_equal(region.to_array(), expected)
    assert (region.corner_xy, region.crop.shape, region.area_px) == ((1, 2), (7, 8), 28)


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.2, 0.1, 0.9),
        (0.10, 0.2, 0.19, 0.9),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 1.2, 1.0),
        (-0.5, 0.0, 1.0, 1.0),
        (float("nan"), 0.0, 1.0, 1.0),
    ],
)
def test_a_box_without_pixels_or_outside_the_image_gets_no_mask(box: tuple[float, ...]) -> None:
    assert paste_mask(np.ones((64, 64), np.float32), box, (10, 10)) is None


def test_iou_counts_pixels_and_is_zero_for_two_empty_masks() -> None:
    a = np.zeros((4, 4), bool)
    assert mask_iou(a, a) == 0
    a[:2] = True
    b = np.zeros((4, 4), bool)
    b[1:3] = True
    assert mask_iou(a, b) == pytest.approx(4 / 12)
    with pytest.raises(DataError, match="one size"):
        mask_iou(a, b[:2])


def test_a_region_holds_only_the_rectangle_of_its_foreground() -> None:
    full = np.zeros((50, 40), bool)
    full[10:13, 20:25] = True
    region = MaskRegion.from_array(full)
    assert (region.crop.shape, region.corner_xy, region.image_wh) == ((3, 5), (20, 10), (40, 50))
    assert np.array_equal(region.to_array(), full)
    assert MaskRegion.from_array(np.zeros((5, 6), bool)).to_array().shape == (5, 6)


def test_regions_that_leave_their_image_or_are_no_mask_are_refused() -> None:
    with pytest.raises(DataError, match="inside its image"):
        MaskRegion(crop=np.ones((3, 3), bool), corner_xy=(8, 0), image_wh=(10, 10))
    with pytest.raises(DataError, match="is bool"):
        MaskRegion(crop=np.ones((3, 3)), corner_xy=(0, 0), image_wh=(10, 10))
    with pytest.raises(DataError, match="pixels"):
        MaskRegion(crop=np.ones((3, 3), bool), corner_xy=(0, 0), image_wh=(10**5, 10**5))


@pytest.mark.parametrize("hw", [(8, 8), (64, 64), (90, 200), (200, 17)])
def test_cutting_out_agrees_with_pillows_antialiased_resize(hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random(hw) > 0.5).astype(np.uint8) * 255
    ours = crop_mask(mask, np.float32([0, 0, 1, 1])) * 255
    picture = Image.fromarray(mask.astype(np.float32))
    theirs = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, theirs, atol=1e-2)


def test_cutting_out_and_pasting_back_keeps_a_mask() -> None:
    full = np.zeros((120, 160), bool)
    full[20:120, 30:130] = disc(100, 45)
    box = np.float32([20 / 120, 30 / 160, 1.0, 130 / 160])
    region = paste_mask(2 * crop_mask(full, box) - 1, box, (160, 120))
    assert region is not None
    assert mask_iou(region.to_array(), full) > 0.98


@settings(deadline=None, max_examples=100)
@given(MASKS)
def test_run_lengths_are_those_of_pycocotools_and_come_back(mask: np.ndarray) -> None:
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode_rle(mask)
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert np.array_equal(decode_rle(ours), mask)


def test_long_runs_and_their_negative_differences_survive() -> None:
    mask = np.zeros((3000, 700), bool)
    mask[:2000, :300] = True
    mask[5, 400:] = True
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask)["counts"] == theirs["counts"].decode()
    assert np.array_equal(decode_rle(theirs), mask)  # bytes, as pycocotools gives them


def test_uncompressed_runs_are_read_too() -> None:
    mask = decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": "4"},
        {"size": [2, 2], "counts": "5"},
        {"size": [2, 2], "counts": "\x00"},
        {"size": [2, 2], "counts": "oooo"},
        {"size": [2, 2], "counts": "o" * 50},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [10**6, 10**6], "counts": "1"},
        {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": b"\xff"},
        {"size": [-2, -2], "counts": "4"},
        {"size": [2, 2], "counts": [float("inf")]},
        {"size": [float("inf"), 2], "counts": "4"},
    ],
)
def test_damaged_run_lengths_are_refused(rle: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        decode_rle(rle)


def test_a_rectangle_is_four_corners_clockwise() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    (ring,) = polygons(mask)
    assert ring_area(ring) == 15
    assert {tuple(p) for p in ring} == {(2, 1), (7, 1), (7, 4), (2, 4)}


def test_a_hole_is_a_ring_of_negative_area_and_no_polygon() -> None:
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    assert sorted(ring_area(r) for r in trace_rings(mask)) == [-1, 25]
    assert [ring_area(r) for r in polygons(mask)] == [25]


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    assert [ring_area(r) for r in polygons(np.eye(2, dtype=bool))] == [1, 1]


@settings(deadline=None, max_examples=100)
@given(MASKS)
def test_the_rings_enclose_exactly_the_pixels(mask: np.ndarray) -> None:
    rings = trace_rings(mask)
    assert sum(ring_area(r) for r in rings) == mask.sum()
    for ring in rings:  # only corners: every step turns
        step = np.roll(ring, -1, 0) - ring
        assert np.all((step == 0).sum(1) == 1)


@coco_decodes
def test_simplifying_a_disc_keeps_its_shape_with_few_corners() -> None:
    (ring,) = polygons(disc(100, 45))
    (simple,) = polygons(disc(100, 45), tolerance_px=0.75)
    assert len(simple) < len(ring) / 3
    drawn = coco.decode(coco.frPyObjects([simple.ravel().tolist()], 100, 100))[..., 0] > 0
    assert mask_iou(drawn, disc(100, 45)) > 0.97
    assert len(simplify_ring(ring[:3], 10.0)) == 3


def test_polygons_of_a_region_lie_at_its_place() -> None:
    region = MaskRegion(crop=np.ones((2, 3), bool), corner_xy=(10, 20), image_wh=(40, 50))
    (ring,) = region.to_polygons()
    assert (ring.min(0).tolist(), ring.max(0).tolist()) == ([10, 20], [13, 22])
