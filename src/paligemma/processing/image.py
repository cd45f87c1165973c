"""Any picture to uint8 RGB: files, bytes, Pillow images, arrays and, only when asked, URLs.

Grey is replicated, alpha is dropped (the colours under it stay, as in big_vision), 16-bit values
keep their high byte (as libpng does for TensorFlow), EXIF orientation is applied. The size in the
header is checked before anything is decoded.
"""

from __future__ import annotations

import io
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.generic]"

MAX_PIXELS = 64_000_000
MAX_ENCODED_BYTES = 256 << 20
URL_TIMEOUT_S = 30.0
_URL_SCHEMES = ("http://", "https://")
_EXIF_ORIENTATION = 0x0112

# Raster formats only: Pillow would hand PostScript to another program.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM"),
    *("JPEG2000", "AVIF", "ICO", "TGA", "PCX"),
)


def load_image(
    source: ImageSource,
    *,
    allow_url: bool = False,
    max_pixels: int = MAX_PIXELS,
    upright: bool = True,
) -> NDArray[np.uint8]:
    """Reads one picture.

    Args:
        source: path, encoded bytes, Pillow image or array. An array is [H, W], [H, W, 1], [H, W, 3]
            or [H, W, 4], of bool, uint8, uint16 (high byte kept) or float in [0, 1]. Of an
            animation the first frame counts. A string starting with http:// or https:// is a URL.
        allow_url: whether URLs may be fetched.
        max_pixels: largest width x height, checked before decoding. Pillow itself refuses
            more than 178 million.
        upright: apply EXIF orientation; big_vision's decoder leaves the pixels as they are stored.

    Returns:
        uint8[H, W, 3] RGB.

    Raises:
        ImageError: unreadable, truncated, too large, of a wrong shape or range, or an URL that was
            not allowed or not reachable.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _decode(source, "the image", max_pixels, upright)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), f"{len(source)} bytes", max_pixels, upright)
    if isinstance(source, str) and source.lower().startswith(_URL_SCHEMES):
        if not allow_url:
            raise ImageError(
                f"a picture is fetched from a URL only when asked, got {source[:200]!r}; "
                "pass allow_url=True or download it first"
            )
        return _from_bytes(_fetch(source), source[:200], max_pixels, upright)
    if isinstance(source, str | Path):
        return _from_bytes(_read_file(Path(source)), str(source), max_pixels, upright)
    raise ImageError(
        f"a picture must be a path, bytes, a Pillow image or an array, got {type(source).__name__}"
    )


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageError(f"a picture must be an existing file, {path} is none; check the path")
        _require_encoded_size(path.stat().st_size, str(path))
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise ImageError(f"the picture {str(path)!r} cannot be read: {error}") from error


def _require_encoded_size(num_bytes: int, name: str) -> None:
    if num_bytes > MAX_ENCODED_BYTES:
        raise ImageError(
            f"an encoded picture may have {MAX_ENCODED_BYTES} bytes, {name} has {num_bytes}; "
            "save it smaller"
        )


def _fetch(url: str) -> bytes:
    """The body behind a URL, bounded in bytes and in time."""
    import http.client
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + URL_TIMEOUT_S
    body = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "paligemma"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_S) as response:
            if not response.url.lower().startswith(_URL_SCHEMES):
                raise ImageError(f"a URL must stay http or https, was sent to {response.url[:200]}")
            while chunk := response.read(1 << 16):
                body += chunk
                _require_encoded_size(len(body), url[:200])
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {URL_TIMEOUT_S:.0f} s")
    except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException) as error:
        raise ImageError(
            f"the picture at {url[:200]} cannot be fetched ({error}); download it first"
        ) from error
    return bytes(body)


def _from_bytes(data: bytes, name: str, max_pixels: int, upright: bool) -> NDArray[np.uint8]:
    from PIL import Image

    _require_encoded_size(len(data), name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own bound is stricter, damage is an error below
            image = _recognised(data)
    except Image.DecompressionBombError as error:
        raise ImageError(_too_many_pixels(name, "more than 178 million", max_pixels)) from error
    except Exception as error:  # hostile headers raise whatever a plugin stumbles over
        raise ImageError(
            f"a picture must be JPEG, PNG, WebP, GIF, BMP, TIFF or another raster format, "
            f"{name} cannot be recognised as one; convert it first"
        ) from error
    return _decode(image, name, max_pixels, upright)


def _recognised(data: bytes) -> Image.Image:
    """The picture, its header read; many modules for rarer formats are imported only for them."""
    from PIL import Image, UnidentifiedImageError

    def opened() -> Image.Image:
        formats = [name for name in _FORMATS if name in Image.OPEN]
        return Image.open(io.BytesIO(data), formats=formats)

    Image.preinit()
    try:
        return opened()
    except UnidentifiedImageError:
        Image.init()
        return opened()


def _too_many_pixels(name: str, found: str, max_pixels: int) -> str:
    return (
        f"a picture may have {max_pixels} pixels, {name} has {found}; "
        "shrink it first (in Python, max_pixels may be raised)"
    )


def _require_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"a picture must have at least one pixel, {name} is {width}x{height}")
    if width * height > max_pixels:
        found = f"{width}x{height} = {width * height}"
        raise ImageError(_too_many_pixels(name, found, max_pixels))


def _decode(image: Image.Image, name: str, max_pixels: int, upright: bool) -> NDArray[np.uint8]:
    _require_pixels(*image.size, name, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _to_rgb(_upright(image, name) if upright else image, name)
    except ImageError:
        raise
    except Exception as error:  # truncated and hostile data raise whatever the decoder meets
        raise ImageError(
            f"a picture must be complete and undamaged, {name} cannot be decoded "
            f"({str(error)[:200]}); save it again"
        ) from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    from PIL import ImageOps

    try:
        if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged metadata beside sound pixels
        logger.warning("%s: EXIF orientation ignored, its metadata is damaged (%s)", name, error)
        return image


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_levels(np.asarray(image), name)
    if image.mode == "F":
        return _from_floats(np.asarray(image), name)
    if image.mode in ("P", "PA", "La", "RGBa"):  # through RGBA, so that no colour turns transparent
        image = image.convert("RGBA")
    if image.mode == "LA":
        image = image.convert("L")
    return np.array(image.convert("RGB"))


def _from_array(array: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"an image array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got "
            f"{list(array.shape)}; move the channels last"
        )
    _require_pixels(array.shape[1], array.shape[0], "the array", max_pixels)
    if array.dtype == np.uint8:
        return _three_channels(array)
    if array.dtype == np.bool_:
        return _three_channels(array.astype(np.uint8) * np.uint8(255))
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _from_levels(array, "the array")
    if array.dtype.kind == "f":
        return _from_floats(array, "the array")
    raise ImageError(
        f"an image array must be bool, uint8, uint16 or float in [0, 1], got {array.dtype}; "
        "convert it to uint8 first"
    )


def _from_levels(levels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """16-bit grey levels, possibly in a wider integer type; the high byte stays."""
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 0xFFFF:
        raise ImageError(
            f"integer pixels of more than 8 bits must lie in 0..65535, {name} has {low}..{high}; "
            "rescale it first"
        )
    if 0 < high < 256:
        logger.warning("%s: 16-bit pixels are all below 256 and become black", name)
    return _three_channels((levels >> 8).astype(np.uint8))


def _from_floats(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ImageError(
            f"float pixels must lie in [0, 1], {name} has {low:g}..{high:g}; "
            "divide by the largest value, or pass uint8"
        )
    return _three_channels(np.rint(values.astype(np.float64) * 255).astype(np.uint8))


def _three_channels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])
