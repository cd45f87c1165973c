"""Small objects: pictures asked tile by tile, and their objects joined."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from tiny_folder import DESK

from paligemma import Detections, PaliGemma
from paligemma.errors import ConfigError, PromptError
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.types import Detection
from paligemma.pipeline.tiling import cut, joined, tile_places

WH = (100, 60)


def found(image_wh: tuple[int, int], *objects: tuple[Any, float, str]) -> Detections:
    items = tuple(
        Detection(label=label, box_yxyx=box_yxyx, image_wh=image_wh, score=score)
        for box_yxyx, score, label in objects
    )
    return Detections(items=items, image_wh=image_wh, text="whole")


@pytest.mark.parametrize(("tile", "overlap"), [("2x2", 0.2), ((3, 1), 0.0), ("5x4", 0.5)])
def test_tiles_cover_the_picture_and_overlap_by_their_share(tile: Any, overlap: float) -> None:
    places = tile_places((1000, 700), tile, overlap)
    seen = np.zeros((700, 1000), int)
    for left, top, right, low in places:
        seen[top:low, left:right] += 1
    assert seen.min() == 1
    columns = sorted({(left, right) for left, _, right, _ in places})
    for (_, right), (left, end) in itertools.pairwise(columns):
        assert (right - left) / (end - left) == pytest.approx(overlap, abs=0.01)
    rows = np.arange(700 * 1000).reshape(700, 1000)
    assert [tile.shape for tile in cut(rows, places)] == [
        (low - top, right - left) for left, top, right, low in places
    ]


@pytest.mark.parametrize("tile", ["2", "0x2", "9x9", "2x", "axb", (2,), (2, 2, 2), 4, None, 1.5])
def test_what_is_no_number_of_tiles_is_refused(tile: Any) -> None:
    with pytest.raises(ConfigError, match="tiles are columns and rows, at most 64"):
        tile_places(WH, tile)
    with pytest.raises(ConfigError, match=r"a share in \[0, 0\.9\]"):
        tile_places(WH, "2x2", 1.0)
    with pytest.raises(ConfigError, match="at least a pixel"):
        tile_places((3, 3), "8x8")


def test_objects_of_tiles_are_moved_into_the_picture_with_their_masks() -> None:
    places = [(50, 30, 100, 60)]
    region = MaskRegion(crop=np.ones((3, 4), bool), corner_xy=(5, 6), image_wh=(50, 30))
    item = Detection(
        label="star",
        box_yxyx=(0.2, 0.1, 0.3, 0.18),
        image_wh=(50, 30),
        score=0.5,
        box_expected_yxyx=(0.2, 0.1, 0.3, 0.18),
        box_std_yxyx=(0.1, 0.1, 0.1, 0.1),
        region=region,
    )
    tile = Detections(items=(item,), image_wh=(50, 30))
    (moved,) = joined(found(WH), [tile], places)
    assert moved.box_xyxy_px == pytest.approx((55, 36, 59, 39))
    assert moved.box_expected_yxyx == pytest.approx(moved.box_yxyx)
    assert moved.box_std_yxyx == pytest.approx((0.05, 0.05, 0.05, 0.05))
    assert moved.mask is not None
    assert np.argwhere(moved.mask).min(0).tolist() == [36, 55]
    assert moved.mask.sum() == 12


def test_a_thing_found_in_several_answers_is_the_most_confident_one() -> None:
    places = [(0, 0, 50, 60), (50, 0, 100, 60)]
    whole = found(WH, ((0, 0.2, 1, 0.8), 0.6, "cat"), ((0.1, 0.1, 0.2, 0.2), 0.1, "dog"))
    half = found((50, 60), ((0, 0.4, 1, 1.0), 0.4, "cat"), ((0.1, 0.2, 0.2, 0.4), 0.9, "dog"))
    twice = found((50, 60), ((0, 0.1, 1, 0.5), 0.5, "dog"), ((0, 0.1, 1, 0.5), 0.4, "dog"))
    result = joined(whole, [half, twice], places)
    # The half of the cat is none beside the whole; two of one answer both stay.
    assert [(one.label, one.score) for one in result] == [
        *(("cat", 0.6), ("dog", 0.9), ("dog", 0.5), ("dog", 0.4))
    ]
    assert (result.text, result.image_wh) == ("whole", WH)
    assert len(joined(whole, [half, twice], places, 1.0)) == 6


def test_a_picture_is_asked_whole_and_in_tiles(random_tiny: PaliGemma) -> None:
    how: Mapping[str, Any] = {"constrain": True, "max_new_tokens": 14}
    ask: Callable[..., Any] = random_tiny.detect
    whole = ask(DESK, "circle", **how)
    tiled = ask(DESK, "circle", tile="2x1", max_overlap=1.0, **how)
    tiles = cut(random_tiny.open_picture(DESK), tile_places((640, 480), "2x1"))
    alone = ask(tiles, "circle", **how)
    assert len(tiled) == sum(sum(item.is_valid for item in one) for one in (whole, *alone))
    assert tiled.image_wh == (640, 480)
    assert tiled.draw().width == 640
    several = ask([random_tiny.encode_image(DESK)], "circle", tile=(2, 1), max_overlap=1.0, **how)
    np.testing.assert_allclose(several[0].xyxy, tiled.xyxy, atol=1e-6)
    with pytest.raises(PromptError, match="tiles are for prompts that ask for objects"):
        random_tiny.ask_tiled(DESK, "caption en", "2x2", max_new_tokens=2)
    with pytest.raises(ConfigError, match="tiles are columns and rows"):
        ask("no-such-picture.png", "circle", tile="2by2")
