"""Resizing to the square the model reads, by three named methods.

`bicubic` is what the hub's processors do (Pillow, antialiased, rounded). The two bilinear methods
repeat big_vision's op bit for bit: float32 arithmetic in its order, result truncated to uint8.
Aspect ratio is never kept and nothing is cropped or padded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import ConfigError

BICUBIC = "bicubic"
BILINEAR = "bilinear"
BILINEAR_ANTIALIAS = "bilinear-antialias"
RESIZE_METHODS = (BICUBIC, BILINEAR, BILINEAR_ANTIALIAS)

# What stages 1 and 2 of pre-training draw from.
KERNELS = ("bilinear", "bicubic", "lanczos3", "area", "mitchellcubic")

_F32 = np.float32

_WHOLE_PIXELS = 1 << 21  # pictures up to these are resized at once
_BAND_PIXELS = 1 << 18


def require_resize_method(method: str) -> None:
    """Raises ConfigError unless `method` is one of `RESIZE_METHODS`."""
    if method not in RESIZE_METHODS:
        raise ConfigError(
            f"the resize method must be one of {', '.join(RESIZE_METHODS)}, got {method!r:.100}"
        )


def resize(image: NDArray[np.uint8], size_px: int, method: str = BICUBIC) -> NDArray[np.uint8]:
    """A square image of the wanted size.

    Args:
        image: uint8[H, W, 3].
        size_px: side of the result.
        method: one of `RESIZE_METHODS`.

    Returns:
        uint8[size_px, size_px, 3]; `image` itself when it has that size already.

    Raises:
        ConfigError: unknown method.
    """
    require_resize_method(method)
    if image.shape[:2] == (size_px, size_px):
        return image
    if method == BICUBIC:
        return _resize_bicubic(image, size_px)
    resized = resize_float(image, size_px, antialias=method == BILINEAR_ANTIALIAS)
    return np.clip(resized, 0, 255).astype(np.uint8)  # astype truncates, as the original's cast


def resize_float(
    image: NDArray[np.generic], size_px: int, *, antialias: bool
) -> NDArray[np.float32]:
    """Bilinear with half-pixel centres, before any truncation (video frames stop here).

    Args:
        image: uint8 or float32[H, W, C].
        size_px: side of the result.
        antialias: stretch the triangle filter by the down-scale factor; otherwise 4 neighbours.

    Returns:
        float32[size_px, size_px, C], in the range of the input.

    Source: big_vision pp/ops_image.py get_resize, arithmetic of tf.image.resize.
    """
    if antialias:
        rows = _filter_rows(image, size_px)
        columns = _filter_rows(np.ascontiguousarray(rows.transpose(1, 0, 2)), size_px)
        return np.ascontiguousarray(columns.transpose(1, 0, 2))
    return _interpolate(image, size_px)


def to_unit_range(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Grey levels 0..255 to float32 in [-1, 1].

    Source: big_vision pp/ops_image.py value_range(-1, 1), x/255*2 - 1 in float32.
    """
    return image.astype(_F32) / _F32(255) * _F32(2) - _F32(1)


def _resize_bicubic(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = image.shape[:2]
    if height * width > _WHOLE_PIXELS and height <= width:
        # Of such a picture Pillow resamples each row by itself, then the columns of what it wrote
        # (of a high one the columns come first): in bands of rows the values are the same, and
        # the picture is not held once more in Pillow's memory, whose release holds up all threads.
        narrow = np.empty((height, size_px, 3), np.uint8)
        step = max(_BAND_PIXELS // width, 1)
        for top in range(0, height, step):
            band = Image.fromarray(image[top : top + step])
            slim = band.resize((size_px, band.height), Image.Resampling.BICUBIC)
            narrow[top : top + step] = np.asarray(slim)
        image = narrow
    resized = Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _neighbours(
    size_in: int, size_out: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Lower and upper sample of every output position, and its fraction between them."""
    scale = _F32(size_in) / _F32(size_out)
    position = (np.arange(size_out, dtype=_F32) + _F32(0.5)) * scale - _F32(0.5)
    below = np.floor(position)
    lower = np.maximum(below, 0).astype(np.intp)
    upper = np.minimum(np.ceil(position), size_in - 1).astype(np.intp)
    return lower, upper, position - below


def _interpolate(image: NDArray[np.generic], size_px: int) -> NDArray[np.float32]:
    top, bottom, fraction_y = _neighbours(image.shape[0], size_px)
    left, right, fraction_x = _neighbours(image.shape[1], size_px)
    fraction_x = fraction_x[None, :, None]

    def along_x(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        picked = image[rows]
        first = picked[:, left].astype(_F32)
        return first + (picked[:, right].astype(_F32) - first) * fraction_x

    upper_row = along_x(top)
    return upper_row + (along_x(bottom) - upper_row) * fraction_y[:, None, None]


def _triangle_taps(size_in: int, size_out: int, index: int) -> tuple[int, NDArray[np.float32]]:
    """First source row and normalised float32 weights of one output row."""
    half, one = _F32(0.5), _F32(1)
    inverse = one / (_F32(size_out) / _F32(size_in))
    support = max(inverse, one)
    sample = (_F32(index) + half) * inverse
    first = max(int(np.ceil(sample - support - half)), 0)
    last = min(int(np.floor(sample + support - half)), size_in - 1)
    taps = np.arange(first, last + 1, dtype=_F32)
    distance = np.abs(taps + half - sample) * (one / support)
    weights = np.maximum(one - distance, _F32(0))
    total = np.add.accumulate(weights)[-1]  # in order: np.sum would add pairwise
    return first, weights * (one / total)


def _filter_rows(image: NDArray[np.generic], size_px: int) -> NDArray[np.float32]:
    """Antialiased resize of axis 0; products are added in the order of the source rows."""
    height = image.shape[0]
    result = np.empty((size_px, *image.shape[1:]), _F32)
    for index in range(size_px):
        first, weights = _triangle_taps(height, size_px, index)
        block = image[first : first + len(weights)].astype(_F32)
        block *= weights.reshape(-1, *([1] * (image.ndim - 1)))
        np.add.reduce(block, axis=0, out=result[index])  # an outer axis is added in order
    return result


def resize_by_kernel(
    image: NDArray[np.uint8], size_px: int, kernel: str, *, antialias: bool
) -> NDArray[np.uint8]:
    """A square image by one of `KERNELS`, truncated as the original's cast does.

    Within a grey level of tf.image.resize, for augmentation; `resize` is bit for bit.

    Args:
        image: uint8[H, W, 3].
        size_px: side of the result.
        kernel: one of `KERNELS`; "area" always averages what it covers.
        antialias: stretch the kernel by the down-scale factor.
    """
    height, width = image.shape[:2]
    rows = _kernel_weights(height, size_px, kernel, antialias)
    columns = _kernel_weights(width, size_px, kernel, antialias)
    first = (rows @ image.reshape(height, -1).astype(_F32)).reshape(size_px, width, -1)
    resized = np.einsum("ow,hwc->hoc", columns, first, optimize=True)
    return np.clip(resized + _F32(1e-3), 0, 255).astype(np.uint8)


def _kernel_weights(
    size_in: int, size_out: int, kernel: str, antialias: bool
) -> NDArray[np.float32]:
    """What each input pixel adds to each output pixel: float32[size_out, size_in]."""
    scale = size_in / size_out
    stretch = max(scale, 1.0) if antialias or kernel == "area" else 1.0
    centres = (np.arange(size_out) + 0.5) * scale
    first = np.arange(size_in)
    if kernel == "area":
        low, high = centres - scale / 2, centres + scale / 2
        weights = np.minimum(high[:, None], first + 1) - np.maximum(low[:, None], first)
        weights = np.clip(weights, 0, None)
    else:
        weights = _kernel_value(kernel, (first + 0.5 - centres[:, None]) / stretch)
    return (weights / weights.sum(1, keepdims=True)).astype(_F32)


def _kernel_value(kernel: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    if kernel == "bilinear":
        return np.clip(1 - x, 0, None)
    if kernel == "lanczos3":
        return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    b, c = (0.0, 0.5) if kernel == "bicubic" else (1 / 3, 1 / 3)
    near = (12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)
    far = (-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + (8 * b + 24 * c)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0)) / 6
