"""Masks between their box and the image: cut out for the codec, pasted back from it."""

from __future__ import annotations

import numpy as np

from paligemma.errors import DataError

MASK_SIZE_PX = 64


def crop_mask(mask: np.ndarray, box_yxyx: np.ndarray) -> np.ndarray:
    """The codec's view of an object: its box cut out and resized, bilinear with antialias.

    Args:
      mask: uint8[H, W] in 0..255, or bool[H, W].
      box_yxyx: float[4] normalised to [0, 1]; edges are rounded to whole pixels, half to even.

    Returns:
      float32[64, 64] in [0, 1].

    Raises:
      DataError: the mask is no such array, or no pixel lies inside the rounded box.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
        raise DataError(
            f"A mask must be bool[H, W] or uint8[H, W], but is {mask.dtype}{list(mask.shape)}; "
            "pass one channel, with foreground True or 255."
        )
    values = mask.astype(np.float32) * np.float32(255 if mask.dtype == np.bool_ else 1)
    if values.size and values.max() == 1.0:
        raise DataError(
            "A uint8 mask spans 0..255, but this one has a maximum of 1; pass it as bool instead."
        )
    height, width = mask.shape
    edges = np.round(np.asarray(box_yxyx, np.float32) * np.array([height, width] * 2, np.float32))
    if not np.isfinite(edges).all():
        raise DataError(f"A box must hold four finite numbers, but is {box_yxyx}; correct the box.")
    y0, x0, y1, x1 = np.clip(edges, 0, [height, width] * 2).astype(int).tolist()
    if y1 <= y0 or x1 <= x0:
        raise DataError(
            f"A mask's box must cover at least one pixel, but {box_yxyx} covers none of "
            f"the {width}x{height} image; leave such objects out."
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
