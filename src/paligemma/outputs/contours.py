"""Outlines of a mask as polygons on pixel corners, and their simplification.

The tracer follows the edges between pixels, so a polygon's area is exactly the number of pixels
it encloses. Foreground pixels that touch only at a corner fall into separate rings.
"""

from collections.abc import Sequence

import numpy as np

# Directions of travel with foreground on the right, in clockwise order: a right turn adds one.
_STEP_YX = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])


def polygons(mask: np.ndarray, *, tolerance_px: float = 0.0) -> list[np.ndarray]:
    """Outer outlines of a mask, largest first.

    Holes are left out: polygons of COCO and YOLO are filled shapes. Run lengths keep them.

    Args:
        mask: bool[H, W].
        tolerance_px: corners nearer than this to the simplified outline are dropped; 0 keeps all.

    Returns:
        float64[N, 2] each, (x, y) on pixel corners in [0, W] x [0, H], clockwise, not closed.
    """
    outer = [ring for ring in trace_rings(mask) if ring_area(ring) > 0]
    outer.sort(key=ring_area, reverse=True)
    simplified = [simplify_ring(ring, tolerance_px) for ring in outer] if tolerance_px else outer
    return [ring for ring in simplified if len(ring) >= 3]


def trace_rings(mask: np.ndarray) -> list[np.ndarray]:
    """All outlines of bool[H, W], float64[N, 2] each, the corners (x, y) only.

    They go clockwise around foreground (positive area) and the other way around holes.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    height, width = mask.shape[0] + 1, mask.shape[1] + 1  # of the grid of pixel corners
    north_west, north_east = padded[:-1, :-1], padded[:-1, 1:]
    south_west, south_east = padded[1:, :-1], padded[1:, 1:]
    # leaves[d, y, x]: an outline leaves corner (y, x) in direction d, foreground on its right.
    leaves = np.stack(
        [
            south_east & ~north_east,
            south_west & ~south_east,
            north_west & ~south_west,
            north_east & ~north_west,
        ]
    )
    following = _following_edges(leaves, height, width)
    rings = []
    while following:
        first, at = next(iter(following)), -1
        corners: list[int] = []
        edge = first
        while at != first:
            at = following.pop(edge)
            if at // (height * width) != edge // (height * width):  # it turns here
                corners.append(at % (height * width))
            edge = at
        y, x = np.divmod(np.array(corners), width)
        rings.append(np.stack([x, y], -1).astype(np.float64))
    return rings


def fill_rings(rings: Sequence[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie in any of several rings; undoes `trace_rings`, ring by ring.

    Args:
        rings: float64[N, 2] each, (x, y) in pixels; what lies outside the picture is passed over.
            A ring that crosses itself is filled by the even-odd rule.

    Returns:
        bool[H, W].
    """
    height, width = size_hw
    mask = np.zeros(size_hw, bool)
    for ring in rings:
        (x0, y0), (x1, y1) = np.asarray(ring, np.float64).T, np.roll(ring, -1, axis=0).T
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
        top, bottom = int(first.min()), int(last.max())
        if top >= bottom:
            continue
        # Every edge toggles, in each row of pixel centres that it crosses, all that follows.
        num = last - first
        edge = np.repeat(np.arange(len(num)), num)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(num) - num, num) + first[edge]
        share = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
        x = x0[edge] + share * (x1 - x0)[edge]
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        places = (row - top) * (width + 1) + column
        toggles = np.bincount(places, minlength=(bottom - top) * (width + 1)) & 1
        inside = np.cumsum(toggles.reshape(bottom - top, width + 1), axis=1) & 1
        mask[top:bottom] |= inside[:, :width].astype(bool)
    return mask


def one_ring(mask: np.ndarray) -> np.ndarray:
    """All outlines of bool[H, W], holes too, as one ring float64[N, 2] that even-odd filling reads.

    Bridges of no width lead from the first outline to each other one and back.
    """
    rings = trace_rings(mask)
    if len(rings) < 2:
        return rings[0] if rings else np.zeros((0, 2))
    start = rings[0][:1]
    return np.concatenate([part for ring in rings for part in (ring, ring[:1], start)][:-1])


def ring_area(ring: np.ndarray) -> float:
    """Signed area of float64[N, 2]; positive where (x right, y down) corners go clockwise."""
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def simplify_ring(ring: np.ndarray, tolerance_px: float) -> np.ndarray:
    """Drop corners of float64[N, 2] within the tolerance of the new outline (Douglas-Peucker)."""
    num = len(ring)
    if num <= 3:
        return ring
    far = int(np.square(ring - ring[0]).sum(-1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(num + 1, bool)
    keep[[0, far, num]] = True
    spans = [(0, far), (far, num)]
    while spans:
        low, high = spans.pop()
        if high - low < 2:
            continue
        distance = _distance_to_segment(closed[low + 1 : high], closed[low], closed[high])
        worst = int(distance.argmax())
        if distance[worst] > tolerance_px:
            middle = low + 1 + worst
            keep[middle] = True
            spans += [(low, middle), (middle, high)]
    return closed[:-1][keep[:-1]]


def _following_edges(leaves: np.ndarray, height: int, width: int) -> dict[int, int]:
    """Each outline edge's successor; an edge is direction * H * W + corner."""
    direction, y, x = np.nonzero(leaves)
    end_y = y + _STEP_YX[direction, 0]
    end_x = x + _STEP_YX[direction, 1]
    # At a corner where two outlines meet, the right turn keeps to the same pixel.
    right, left = (direction + 1) % 4, (direction + 3) % 4
    goes_right, goes_on = leaves[right, end_y, end_x], leaves[direction, end_y, end_x]
    turn = np.where(goes_right, right, np.where(goes_on, direction, left))
    edge = direction * height * width + y * width + x
    successor = turn * height * width + end_y * width + end_x
    return dict(zip(edge.tolist(), successor.tolist(), strict=True))


def _distance_to_segment(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances of float64[N, 2] to the segment from a to b."""
    along = b - a
    length = float(along @ along)
    share = np.clip((points - a) @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.linalg.norm(points - (a + share[:, None] * along), axis=-1)
