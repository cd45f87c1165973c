"""Boxes: pixels, normalised coordinates and `<loc>` bins; the text of a detection or segmentation.

A box is (ymin, xmin, ymax, xmax). The original writes `round(c * 1023)` and reads `token / 1023`
(big_vision `pp/proj/paligemma/ops.py`, `evaluators/proj/paligemma/transfers/segmentation.py`); its
public demo and transformers' examples divide by 1024 instead, so the divisor is an argument here.
"""

import re
import reprlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from paligemma.errors import DataError
from paligemma.vocab import NUM_LOC, NUM_SEG, SEG_PER_MASK

Box = tuple[float, float, float, float]
Divisor = Literal[1023, 1024]
SEPARATOR = " ; "

# Beyond 1023 and 127 they are plain text, to the parser too.
_OBJECT_TOKEN = re.compile(r"<loc(0\d{3}|10[01]\d|102[0-3])>|<seg(0\d\d|1[01]\d|12[0-7])>")


def encode_boxes(boxes_yxyx: ArrayLike, *, divisor: Divisor = 1023) -> np.ndarray:
    """Bins of normalised coordinates: int64[..., 4] in [0, 1023], rounded half to even in float32.

    Args:
        boxes_yxyx: float[..., 4] in [0, 1]; coordinates slightly outside are clipped.
        divisor: number by which a bin is divided to give its coordinate.

    Raises:
        DataError: a coordinate is not finite.
    """
    coordinates = np.asarray(boxes_yxyx, np.float32)
    if not np.isfinite(coordinates).all():
        raise DataError(f"box coordinates must be finite, got {boxes_yxyx!r}; correct them")
    # float64 would round more than a tenth of the near-ties differently from the original.
    bins = np.round(coordinates * np.float32(divisor))
    return np.clip(bins, 0, NUM_LOC - 1).astype(np.int64)


def require_box(box_yxyx: Sequence[float]) -> None:
    """Raise DataError unless a box is (ymin, xmin, ymax, xmax), normalised and not empty."""
    try:
        y0, x0, y1, x1 = (float(edge) for edge in box_yxyx)
        is_box = 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1
    except (TypeError, ValueError):
        is_box = False
    if not is_box:
        raise DataError(
            "a box must be (ymin, xmin, ymax, xmax) with 0 <= ymin < ymax <= 1 and "
            f"0 <= xmin < xmax <= 1, got {reprlib.repr(box_yxyx)}; divide pixels by the "
            "picture's height and width"
        )


def as_box(values: Iterable[float]) -> Box:
    """Four numbers of an array as a tuple of floats."""
    y0, x0, y1, x1 = map(float, values)
    return y0, x0, y1, x1


def decode_boxes(bins: ArrayLike, *, divisor: Divisor = 1023) -> np.ndarray:
    """Normalised coordinates of bins: int[..., 4] in [0, 1023] -> float32[..., 4] in [0, 1]."""
    return np.asarray(bins, np.float32) / np.float32(divisor)


def box_yxyx_to_xyxy_px(box_yxyx: Sequence[float], image_wh: tuple[int, int]) -> Box:
    """Normalised (ymin, xmin, ymax, xmax) to (x0, y0, x1, y1) in pixels of the image."""
    y0, x0, y1, x1 = (float(c) for c in box_yxyx)
    width, height = image_wh
    return x0 * width, y0 * height, x1 * width, y1 * height


def box_xyxy_px_to_yxyx(box_xyxy_px: Sequence[float], image_wh: tuple[float, float]) -> Box:
    """(x0, y0, x1, y1) in pixels of the image to normalised (ymin, xmin, ymax, xmax)."""
    x0, y0, x1, y1 = (float(c) for c in box_xyxy_px)
    width, height = image_wh
    return y0 / height, x0 / width, y1 / height, x1 / width


def box_iou(a_yxyx: ArrayLike, b_yxyx: ArrayLike) -> np.ndarray:
    """Intersection over union of boxes, 0 where both are empty: float64[...] in [0, 1].

    Args:
        a_yxyx: float[..., 4].
        b_yxyx: float[..., 4], broadcast against a; any axis order or unit, the same for both.
    """
    a, b = np.asarray(a_yxyx, np.float64), np.asarray(b_yxyx, np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.clip(overlap, 0, None).prod(-1)

    def area(box: np.ndarray) -> np.ndarray:
        return np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1)

    union = area(a) + area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def format_loc(bins: Iterable[int]) -> str:
    """`<locNNNN>` tokens of bins in [0, 1023]."""
    return "".join(f"<loc{int(b):04d}>" for b in bins)


def format_seg(codes: Iterable[int]) -> str:
    """`<segNNN>` tokens of codewords in [0, 127]."""
    return "".join(f"<seg{int(c):03d}>" for c in codes)


def format_detections(
    boxes_yxyx: ArrayLike,
    labels: Sequence[str | None],
    codes: Sequence[Sequence[int] | None] | None = None,
    *,
    divisor: Divisor = 1023,
) -> str:
    """The suffix that teaches detection, or segmentation where codes are given.

    Args:
        boxes_yxyx: float[N, 4] in [0, 1].
        labels: N labels; None writes none, as RefCOCO does.
        codes: sixteen codewords for each object, or None for boxes alone.

    Returns:
        For example `<loc0010><loc0020><loc0300><loc0400> cat ; <loc0005>... dog`.

    Raises:
        DataError: lengths differ, a codeword leaves its range, or a label could not be read back.
    """
    bins = encode_boxes(np.asarray(boxes_yxyx, np.float32).reshape(-1, 4), divisor=divisor)
    codes = [None] * len(bins) if codes is None else codes
    if not len(bins) == len(labels) == len(codes):
        raise DataError(
            "every object needs one box, one label and one set of codes, got "
            f"{len(bins)} boxes, {len(labels)} labels and {len(codes)} sets; pass equal numbers"
        )
    return SEPARATOR.join(
        _format_object(row.tolist(), seg, label)
        for row, label, seg in zip(bins, labels, codes, strict=True)
    )


def _format_object(loc: Sequence[int], seg: Sequence[int] | None, label: str | None) -> str:
    seg = () if seg is None else seg
    if len(seg) not in (0, SEG_PER_MASK) or not all(0 <= c < NUM_SEG for c in seg):
        raise DataError(
            f"a mask is {SEG_PER_MASK} codewords in 0..{NUM_SEG - 1}, got {seg}; use mask_to_codes"
        )
    if label is None:
        return format_loc(loc) + format_seg(seg)
    if not label or label != label.strip() or ";" in label or _OBJECT_TOKEN.search(label):
        raise DataError(
            'a label must be non-empty, without spaces around it, ";", <loc> or <seg> tokens, got '
            f"{label!r}; it could not be read back, rename it"
        )
    return f"{format_loc(loc)}{format_seg(seg)} {label}"


def distinct_places(
    labels: Sequence[str | None],
    boxes_yxyx: ArrayLike,
    scores: Sequence[float | None],
    max_overlap: float,
) -> list[int]:
    """Places of the most confident of the boxes of one label that overlap more than that.

    Args:
        boxes_yxyx: float[N, 4].
        scores: confidences; among equal or missing ones the first stays.
        max_overlap: intersection over union, in [0, 1].
    """
    boxes = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4)
    order = sorted(range(len(labels)), key=lambda k: -(scores[k] or 0.0))
    kept: list[int] = []
    for place in order:
        rivals = [k for k in kept if labels[k] == labels[place]]
        if not rivals or box_iou(boxes[rivals], boxes[place]).max() <= max_overlap:
            kept.append(place)
    return sorted(kept)
