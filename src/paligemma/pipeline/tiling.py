"""Small objects: a picture is asked whole and tile by tile, and what was found is joined.

Nothing here needs torch: a client has it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paligemma.errors import ConfigError
from paligemma.outputs.boxes import Box
from paligemma.outputs.detections import Detections
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.types import Detection

MAX_TILES = 64
TILE_OVERLAP = 0.2
MAX_OVERLAP = 0.5

Place = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def tile_places(
    image_wh: tuple[int, int], tile: str | Sequence[int], overlap: float = TILE_OVERLAP
) -> list[Place]:
    """Where the tiles of a picture lie, row by row.

    Args:
        tile: number of columns and rows, as "2x2" or (2, 2).
        overlap: share of a tile's side that it has in common with the next one, in [0, 0.9].

    Raises:
        ConfigError: no such numbers, more than `MAX_TILES`, or tiles of less than a pixel.
    """
    counts: Any = tile
    if isinstance(tile, str) and (match := re.fullmatch(r"\s*(\d{1,3})\s*x\s*(\d{1,3})\s*", tile)):
        counts = tuple(map(int, match.groups()))
    if not (
        isinstance(counts, list | tuple)
        and len(counts) == 2
        and all(isinstance(one, int) and one >= 1 for one in counts)
        and counts[0] * counts[1] <= MAX_TILES
    ):
        raise ConfigError(
            f"tiles are columns and rows, at most {MAX_TILES} in all, such as '2x2', got "
            f"{tile!r:.100}"
        )
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap <= 0.9:
        raise ConfigError(f"tiles overlap by a share in [0, 0.9], got {overlap!r:.100}")
    columns, rows = (_spans(side, num, overlap) for side, num in zip(image_wh, counts, strict=True))
    return [(left, top, right, low) for top, low in rows for left, right in columns]


def _spans(side_px: int, num: int, overlap: float) -> list[tuple[int, int]]:
    length = side_px / (num - (num - 1) * overlap)
    starts = [k * length * (1 - overlap) for k in range(num)]
    spans = [(int(start), min(side_px, math.ceil(start + length))) for start in starts]
    if length < 1:
        raise ConfigError(f"tiles have at least a pixel, got {num} of {side_px} px; take fewer")
    return spans


def cut(picture: np.ndarray, places: Sequence[Place]) -> list[np.ndarray]:
    """The tiles of uint8[H, W, 3]."""
    return [picture[top:low, left:right] for left, top, right, low in places]


def joined(
    whole: Detections,
    tiles: Sequence[Detections],
    places: Sequence[Place],
    max_overlap: float | None = None,
) -> Detections:
    """Objects of a picture and of its tiles, the most confident of those found more than once.

    Two objects of one label from different answers are one where their common area is more than
    `max_overlap` of the smaller box, so that a part cut by a tile is none beside the whole thing.

    Args:
        whole: what was found in the picture; its text and rest stay.
        places: of the tiles.
        max_overlap: in [0, 1]; None is 0.5.
    """
    bound = MAX_OVERLAP if max_overlap is None else max_overlap
    found = [(0, item) for item in whole if item.is_valid]
    for number, (tile, place) in enumerate(zip(tiles, places, strict=True), start=1):
        found += [(number, _moved(item, place, whole.image_wh)) for item in tile if item.is_valid]
    kept: list[tuple[int, Detection]] = []
    for number, item in sorted(found, key=lambda one: -(one[1].score or 0.0)):
        rivals = (one for other, one in kept if other != number and one.label == item.label)
        if not any(_share(one.box_yxyx, item.box_yxyx) > bound for one in rivals):
            kept.append((number, item))
    return replace(whole, items=tuple(item for _, item in sorted(kept, key=lambda one: one[0])))


def _moved(item: Detection, place: Place, image_wh: tuple[int, int]) -> Detection:
    """An object of a tile as one of the picture."""
    left, top, right, low = place
    width, height = image_wh
    scale = np.array([low - top, right - left] * 2) / np.array([height, width] * 2)
    shift = np.array([top, left] * 2) / np.array([height, width] * 2)

    def box(values: Box | None, offset: Any) -> Box | None:
        if values is None:
            return None
        y0, x0, y1, x1 = (np.array(values) * scale + offset).tolist()
        return y0, x0, y1, x1

    region = item.region
    if region is not None:
        x, y = region.corner_xy
        region = MaskRegion(crop=region.crop, corner_xy=(x + left, y + top), image_wh=image_wh)
    moved = box(item.box_yxyx, shift)
    assert moved is not None
    return replace(
        item,
        box_yxyx=moved,
        image_wh=image_wh,
        box_expected_yxyx=box(item.box_expected_yxyx, shift),
        box_std_yxyx=box(item.box_std_yxyx, 0.0),
        region=region,
    )


def _share(a_yxyx: Box, b_yxyx: Box) -> float:
    """Common area of two boxes as a share of the smaller."""
    a, b = np.array(a_yxyx), np.array(b_yxyx)
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
    return float(sides.prod() / smaller) if smaller > 0 else 0.0
