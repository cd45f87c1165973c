"""From an opened Pillow image to uint8 RGB: decoding, orientation, depth and transparency."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paligemma.processing import colours

if TYPE_CHECKING:
    from PIL import Image, ImageFile

logger = logging.getLogger(__name__)

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_LARGEST, _TIFF_LARGEST_FLOAT = 258, 262, 281, 341
# EXIF orientation -> name of Pillow's transposition that makes the picture upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_TURNS_BACK = {**_TURNS, 6: "ROTATE_90", 8: "ROTATE_270"}
# Pillow keeps the high byte of 16-bit colours; read in the other byte order it keeps the low one.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}
_MAX_HIGH_BYTE = 63  # of 14 bits


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How a decoded picture becomes RGB.

    Attributes:
        upright: apply EXIF orientation; otherwise pixels lie as they are stored.
        background: colour under transparent parts; None drops transparency.
        scale_levels: scale levels of more than 8 bits by their true range; otherwise the high byte
            of 16 bits stays.
    """

    upright: bool = True
    background: tuple[int, int, int] | None = (255, 255, 255)
    scale_levels: bool = True


def decode(
    image: Image.Image,
    name: str,
    rendering: Rendering,
    significant_bits: int | None,
    again: Callable[[], ImageFile.ImageFile] | None,
) -> NDArray[np.uint8]:
    """uint8[H, W, 3] of the current frame.

    Args:
        image: opened, within the bounds.
        name: what messages call it.
        rendering: how it becomes RGB.
        significant_bits: bits of a sample by the statement of a PNG.
        again: opens the same frame once more, for a second look at deep colours.

    Raises:
        ImageError: levels outside their range.
        Exception: whatever a decoder raises about damaged data.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    is_negative = tags.get(_TIFF_PHOTOMETRIC) == 0
    orientation = tags.get(_EXIF_ORIENTATION)  # Pillow turns a TIFF upright while it loads
    stated = _largest_stated(image, tags, significant_bits)
    depth = _depth_of_colours(image)
    image.load()

    def turned(loaded: Image.Image) -> Image.Image:
        if rendering.upright:
            return _upright(loaded, name)
        return _transposed(loaded, _TURNS_BACK.get(orientation or 1))

    background = rendering.background
    image = turned(image)
    if image.mode == "F":
        values = colours.grey_floats(colours.levels_of_image(image), name, stated)
        return colours.rgb_of_array(values, name, None)
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = colours.levels_of_image(image)
        grey = colours.grey_levels(levels, name, stated, scale=rendering.scale_levels)
        if is_negative:
            grey = 255 - grey
        clear = image.info.get("transparency")
        if background is not None and isinstance(clear, int) and (levels == clear).any():
            alpha = np.where(levels == clear, 0, 255).astype(np.uint8)
            grey = np.stack([grey, grey, grey, alpha], axis=2)
        return colours.rgb_of_array(grey, name, background)
    if depth is not None:
        clear = image.info.get("transparency")
        if isinstance(clear, tuple):
            image.info["transparency"] = tuple(level >> 8 for level in clear)
        high = max(top for _, top in image.getextrema())  # type: ignore[misc]
        if rendering.scale_levels and again is not None and high <= _MAX_HIGH_BYTE:
            low = again()
            low.tile = [part._replace(args=_other_byte(part.args)) for part in low.tile]
            low.load()
            return _from_two_bytes(image, turned(low), name, stated, background)
    return colours.rgb_of_image(image, name, background)


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception as error:  # damaged metadata beside sound pixels
        logger.warning("%s: EXIF orientation ignored, its metadata is damaged (%s)", name, error)
        return image
    return _transposed(image, _TURNS.get(orientation or 1))


def _transposed(image: Image.Image, turn: str | None) -> Image.Image:
    from PIL import Image as pillow

    if turn is None:
        return image
    transposed = image.transpose(pillow.Transpose[turn])
    transposed.info = image.info
    return transposed


def _largest_stated(
    image: Image.Image, tags: Any, significant_bits: int | None
) -> int | float | None:
    """The largest level that the file itself states for samples of more than 8 bits."""
    if image.format == "JPEG2000":
        return 0xFFFF  # scaled by its precision already
    if image.format == "PNG":
        return None if significant_bits is None else (1 << significant_bits) - 1
    if image.mode == "F":
        return _largest(tags.get(_TIFF_LARGEST_FLOAT))
    bits = _largest(tags.get(_TIFF_BITS))
    if bits is not None and 8 < bits < 16:
        return (1 << int(bits)) - 1
    return _largest(tags.get(_TIFF_LARGEST))


def _largest(value: Any) -> float | None:
    """The largest of a tag's numbers, or of its one number."""
    numbers = value if isinstance(value, tuple) else (value,)
    return max((number for number in numbers if isinstance(number, int | float)), default=None)


def _depth_of_colours(image: Image.Image) -> str | None:
    """Pillow's name of the layout of 16-bit colours, None for others."""
    for part in getattr(image, "tile", ()):
        mode = part.args if isinstance(part.args, str) else (part.args or ("",))[0]
        kind, _, layout = str(mode).partition(";")
        if kind in ("RGB", "RGBA", "RGBX") and layout in _OTHER_BYTE:
            return str(mode)
    return None


def _other_byte(args: Any) -> Any:
    mode = args if isinstance(args, str) else args[0]
    kind, _, layout = mode.partition(";")
    swapped = f"{kind};{_OTHER_BYTE[layout]}"
    return swapped if isinstance(args, str) else (swapped, *args[1:])


def _from_two_bytes(
    high: Image.Image,
    low: Image.Image,
    name: str,
    stated: float | None,
    background: tuple[int, int, int] | None,
) -> NDArray[np.uint8]:
    """RGB of deep colours that end in the dark, by their true range."""
    levels = (np.asarray(high).astype(np.uint16) << 8) | np.asarray(low)
    samples = colours.grey_levels(levels, name, stated, scale=True)
    return colours.rgb_of_array(samples, name, background)
