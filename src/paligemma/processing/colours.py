"""From decoded pixels of any kind to uint8 RGB: transparency, levels of more than 8 bits, palettes.

Pictures are converted in bands of rows, so that a large one is never held three times.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

WHITE = "white"
# Transparency is dropped and the colours under it stay, as in big_vision.
NO_BACKGROUND = "none"

_BAND_PIXELS = 1 << 17
_FULL_RANGE = 0xFFFF
# Depths of sensors and scanners whose levels are stored in 16 bits.
_DEPTHS = (8, 10, 12, 14)


def require_background(name: str) -> None:
    """Raises ConfigError unless a picture can be laid on it; see `background_rgb`."""
    background_rgb(name)


def background_rgb(name: str) -> tuple[int, int, int] | None:
    """The colour of a background, or None where transparency is dropped.

    Args:
        name: a colour as CSS writes it, such as "white" or "#202020", or `NO_BACKGROUND`.

    Raises:
        ConfigError: not a colour.
    """
    from PIL import ImageColor

    if name == NO_BACKGROUND:
        return None
    try:
        return ImageColor.getcolor(name[:100], "RGB")[:3]  # type: ignore[index,return-value]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"a background is a colour, such as white or #202020, or {NO_BACKGROUND!r}, which "
            f"drops transparency; got {name!r:.100}"
        ) from error


def rgb_of_image(
    image: Image.Image,
    name: str,
    background: tuple[int, int, int] | None,
) -> NDArray[np.uint8]:
    """A decoded picture of 8 bits a sample, in whatever mode, as uint8[H, W, 3]."""
    if image.mode in ("La", "RGBa"):  # colours multiplied by their alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    is_transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if image.mode == "LA" and background is None:
        image = image.convert("L")
    if image.mode == "RGB" and background is None:
        image.info.pop("transparency", None)
    through_alpha = is_transparent and (background is not None or image.mode in ("P", "PA"))
    result = np.empty((image.height, image.width, 3), np.uint8)
    any_transparent = False
    for rows, band in _bands(image):
        if not through_alpha:
            result[rows] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
            continue
        pixels = np.asarray(band.convert("RGBA"))
        if background is None:
            result[rows] = pixels[..., :3]
        else:
            result[rows], is_seen_through = lay_on(pixels, background)
            any_transparent |= is_seen_through
    if any_transparent and background is not None:
        say_laid(name, background)
    return result


def levels_of_image(image: Image.Image) -> NDArray[Any]:
    """The pixels of a picture in one of Pillow's modes `I`, `I;16` and `F`."""
    kind = np.dtype(np.float32 if image.mode == "F" else np.int32 if image.mode == "I" else "u2")
    levels = np.empty((image.height, image.width), kind)
    for rows, band in _bands(image):
        levels[rows] = np.asarray(band)
    return levels


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    step = max(_BAND_PIXELS // image.width, 1)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def lay_on(
    rgba: NDArray[np.uint8], background: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], bool]:
    """uint8[H, W, 3] of uint8[H, W, 4] over a colour, and whether any of it shows."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min(initial=255) == 255:
        return rgba[..., :3], False
    under = np.array(background, np.uint16) * (255 - alpha)
    laid = (rgba[..., :3] * alpha + under + 127) // 255
    return laid.astype(np.uint8), True


def say_laid(name: str, background: tuple[int, int, int]) -> None:
    """Warn that a picture has transparent parts and of what is seen in their place."""
    logger.warning(
        "%s is transparent in places, which are laid on #%02x%02x%02x; choose another colour with "
        "--background, or background= in Python, and none for what lies under them",
        name,
        *background,
    )


def grey_levels(
    levels: NDArray[Any], name: str, stated: float | None, *, scale: bool
) -> NDArray[np.uint8]:
    """Integer samples of more than 8 bits as uint8 of the same shape.

    Args:
        levels: int[...] in whatever range.
        name: what messages call the picture.
        stated: the largest level by the file's own statement, if it has one.
        scale: scale by the true range; otherwise the high byte of 16 bits stays, as libpng does
            for TensorFlow.

    Raises:
        ImageError: levels below 0, or above 65535 without a statement.
    """
    low, high = int(levels.min()), int(levels.max())
    stated = stated if scale and stated and high <= stated else None
    if low < 0 or (high > _FULL_RANGE and stated is None):
        raise ImageError(
            f"integer pixels of more than 8 bits must lie in 0..65535, {name} has {low}..{high}; "
            "rescale it first"
        )
    largest = int(stated or _FULL_RANGE)
    if stated is None and scale and 0 < high < 1 << _DEPTHS[-1]:
        depth = next(depth for depth in _DEPTHS if high < 1 << depth)
        largest = (1 << depth) - 1
        logger.warning(
            "%s: its levels of 16 bits end at %d, so its range is taken for 0..%d (%d bits); "
            "scale them to 0..65535 where it is that dark",
            name,
            high,
            largest,
            depth,
        )
    elif not scale:
        largest = _FULL_RANGE
        if 0 < high < 256:
            logger.warning("%s: 16-bit pixels are all below 256 and become black", name)
    depth = largest.bit_length()
    if largest + 1 == 1 << depth and depth >= 8:
        return (levels >> (depth - 8)).astype(np.uint8)
    return ((levels.astype(np.int64) * 255 + largest // 2) // largest).astype(np.uint8)


def grey_floats(values: NDArray[Any], name: str, stated: float | None = None) -> NDArray[np.uint8]:
    """Float samples in [0, 1], or up to what the file states as their largest, as uint8.

    Raises:
        ImageError: values outside, or not numbers.
    """
    largest = stated if stated and np.isfinite(stated) and stated > 0 else 1.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= largest):  # also false for NaN
        raise ImageError(
            f"float pixels must lie in [0, {largest:g}], {name} has {low:g}..{high:g}; "
            "divide by the largest value, or pass uint8"
        )
    return np.rint(values.astype(np.float64) * (255 / largest)).astype(np.uint8)


def rgb_of_array(
    samples: NDArray[np.uint8], name: str, background: tuple[int, int, int] | None
) -> NDArray[np.uint8]:
    """uint8[H, W], [H, W, 1], [H, W, 3] or [H, W, 4] as contiguous uint8[H, W, 3]."""
    if samples.ndim == 2:
        samples = samples[:, :, None]
    if samples.shape[2] == 1:
        samples = np.repeat(samples, 3, axis=2)
    if samples.shape[2] == 4 and background is not None:
        samples, shows = lay_on(samples, background)
        if shows:
            say_laid(name, background)
    return np.ascontiguousarray(samples[:, :, :3])
