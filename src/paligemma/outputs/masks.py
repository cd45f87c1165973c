"""Masks between their box and the image: cut out for the codec, pasted back from it, compared.

Sources: big_vision `pp/proj/paligemma/segmentation.py` (cutting) and
`evaluators/proj/paligemma/transfers/segmentation.py` (pasting and IoU); spec sections 7.1 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from paligemma.errors import DataError
from paligemma.outputs.contours import polygons
from paligemma.outputs.rle import MAX_MASK_PIXELS, encode_rle

MASK_SIZE_PX = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskRegion:
    """A binary mask of an image, stored as the rectangle that holds it.

    Attributes:
        crop: bool[h, w].
        corner_xy: (x, y) of the crop's first pixel in the image.
        image_wh: width and height of the image; the crop lies inside.

    Raises:
        DataError: the crop is not bool[h, w], leaves the image, or the image is too large.
    """

    crop: np.ndarray = field(repr=False)
    corner_xy: tuple[int, int]
    image_wh: tuple[int, int]

    def __post_init__(self) -> None:
        if self.crop.ndim != 2 or self.crop.dtype != np.bool_:
            raise DataError(
                f"a mask region is bool[h, w], got {self.crop.dtype}{list(self.crop.shape)}; "
                "compare the values with a threshold first"
            )
        (x, y), (width, height) = self.corner_xy, self.image_wh
        h, w = self.crop.shape
        if not (0 <= x <= width - w and 0 <= y <= height - h):
            raise DataError(
                f"a mask must lie inside its image, {w}x{h} at ({x}, {y}) leaves "
                f"{width}x{height}; cut it first"
            )
        _check_area(width, height)

    @classmethod
    def from_array(cls, mask: np.ndarray) -> MaskRegion:
        """The region of a whole-image mask bool[H, W], cut to its foreground."""
        height, width = mask.shape[:2]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return cls(crop=np.zeros((0, 0), bool), corner_xy=(0, 0), image_wh=(width, height))
        crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        corner = int(columns[0]), int(rows[0])
        return cls(crop=crop.copy(), corner_xy=corner, image_wh=(width, height))

    def to_array(self) -> np.ndarray:
        """bool[H, W] at the image's size."""
        width, height = self.image_wh
        x, y = self.corner_xy
        h, w = self.crop.shape
        full = np.zeros((height, width), bool)
        full[y : y + h, x : x + w] = self.crop
        return full

    @property
    def area_px(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.crop))

    def to_rle(self) -> dict[str, Any]:
        """COCO's compressed run lengths; see `rle.encode_rle`."""
        return encode_rle(self.to_array())

    def to_polygons(self, *, tolerance_px: float = 0.0) -> list[np.ndarray]:
        """Outer rings float64[N, 2] as (x, y) in pixels of the image; see `contours.polygons`."""
        return [ring + self.corner_xy for ring in polygons(self.crop, tolerance_px=tolerance_px)]


def paste_mask(
    values: np.ndarray, box_yxyx: tuple[float, ...] | np.ndarray, image_wh: tuple[int, int]
) -> MaskRegion | None:
    """Lay a decoded mask into its box as the original's scoring does.

    Box edges are truncated to whole pixels, the raw values resized bilinearly (Pillow), foreground
    is > 0.

    Args:
        values: float32[64, 64] around [-1, 1], as `MaskCodec.decode` gives.
        box_yxyx: normalised to [0, 1].
        image_wh: width and height of the image.

    Returns:
        The mask, or None where the box covers no pixel or leaves the image.
    """
    width, height = image_wh
    _check_area(width, height)
    scaled = np.asarray(box_yxyx, np.float32) * np.array([height, width] * 2, np.float32)
    if not np.isfinite(scaled).all():
        return None
    y0, x0, y1, x1 = scaled.astype(int).tolist()
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        return None
    picture = Image.fromarray(np.asarray(values, np.float32))
    resized = picture.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    return MaskRegion(crop=np.asarray(resized) > 0, corner_xy=(x0, y0), image_wh=image_wh)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool[H, W]; 0 where both are empty.

    Raises:
        DataError: the shapes differ.
    """
    if a.shape != b.shape:
        raise DataError(
            f"masks must be of one size to be compared, got {a.shape} and {b.shape}; resize one "
            "of them"
        )
    intersection = np.count_nonzero(a & b)
    union = np.count_nonzero(a) + np.count_nonzero(b) - intersection
    return intersection / union if union else 0.0


def crop_mask(mask: np.ndarray, box_yxyx: np.ndarray) -> np.ndarray:
    """The codec's view of an object: its box cut out and resized, bilinear with antialias.

    Args:
        mask: uint8[H, W] in 0..255, or bool[H, W].
        box_yxyx: float[4] normalised to [0, 1]; edges are rounded to whole pixels, half to even.

    Returns:
        float32[64, 64] in [0, 1].

    Raises:
        DataError: the mask is another kind of array, or no pixel lies inside the rounded box.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
        raise DataError(
            f"a mask must be bool[H, W] or uint8[H, W], got {mask.dtype}{list(mask.shape)}; "
            "pass one channel, with foreground True or 255"
        )
    values = mask.astype(np.float32) * np.float32(255 if mask.dtype == np.bool_ else 1)
    if values.size and values.max() == 1.0:
        raise DataError(
            "a uint8 mask spans 0..255, got one with a maximum of 1; pass it as bool instead"
        )
    height, width = mask.shape
    edges = np.round(np.asarray(box_yxyx, np.float32) * np.array([height, width] * 2, np.float32))
    if not np.isfinite(edges).all():
        raise DataError(f"a box must hold four finite numbers, got {box_yxyx}; correct the box")
    y0, x0, y1, x1 = np.clip(edges, 0, [height, width] * 2).astype(int).tolist()
    if y1 <= y0 or x1 <= x0:
        raise DataError(
            f"a mask's box must cover at least one pixel, {box_yxyx} covers none of the "
            f"{width}x{height} image; leave such objects out"
        )
    crop = values[y0:y1, x0:x1]
    resized = _resize_axis(_resize_axis(crop, MASK_SIZE_PX, axis=0), MASK_SIZE_PX, axis=1)
    return resized / np.float32(255)


def _resize_axis(image: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """One axis of tf.image.resize (bilinear, antialias), bit for bit: float32, tap by tap."""
    image = np.moveaxis(image, axis, 0)
    n, one, half = len(image), np.float32(1), np.float32(0.5)
    inverse = one / (np.float32(size) / np.float32(n))
    kernel = max(inverse, one)
    centre = (np.arange(size, dtype=np.float32) + half) * inverse
    first = np.maximum(np.ceil(centre - kernel - half), 0).astype(np.int64)
    last = np.minimum(np.floor(centre + kernel - half), n - 1).astype(np.int64)
    taps = first[:, None] + np.arange(int((last - first).max()) + 1)  # [size, taps]
    offset = np.abs(taps.astype(np.float32) + half - centre[:, None])
    weights = np.maximum(0, one - offset * (one / kernel)).astype(np.float32)
    weights[taps > last[:, None]] = 0
    total = np.zeros(size, np.float32)
    for t in range(taps.shape[1]):
        total += weights[:, t]
    weights *= (one / total)[:, None]
    out = np.zeros((size, *image.shape[1:]), np.float32)
    for t in range(taps.shape[1]):
        out += weights[:, t, None] * image[np.minimum(taps[:, t], n - 1)]
    return np.moveaxis(out, 0, axis)


def _check_area(width: int, height: int) -> None:
    if width * height > MAX_MASK_PIXELS:
        raise DataError(
            f"a mask may have at most {MAX_MASK_PIXELS} pixels, got an image of {width}x{height}; "
            "use a smaller one"
        )
