"""Any picture to uint8 RGB: files, bytes, streams, Pillow images, arrays, videos, URLs when asked.

Grey is replicated, transparent parts are laid on white, levels of more than 8 bits are scaled by
their range, EXIF orientation is applied. `load_as_original` does what big_vision's decoder does.
Every bound on what a picture may cost stands here, and is checked against its structure before
anything is decoded.
"""

from __future__ import annotations

import io
import logging
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import ImageError, MissingExtraError
from paligemma.processing import colours, pnm, video
from paligemma.processing.containers import Cost, cost_of
from paligemma.processing.decoding import Rendering, decode
from paligemma.processing.frames import MAX_FRAMES, EvenFrames, FrameChoice, FramesAt, numbers_of
from paligemma.processing.rare import kind_of_data, register_heif
from paligemma.processing.sources import (
    encoded_bytes,
    heading_of,
    regular_file,
    require_size,
    shown_name,
)

if TYPE_CHECKING:
    from PIL import Image, ImageFile

logger = logging.getLogger(__name__)

ImageSource: TypeAlias = "str | Path | bytes | IO[bytes] | Image.Image | NDArray[np.generic]"

# The bounds, one for each resource.
MAX_PIXELS = 64_000_000
MAX_ENCODED_BYTES = 256 << 20  # also of metadata, which may name the same bytes many times
MAX_PASSES_AT_FULL_SIZE = 16  # visits of all pixels; a smaller picture may have more
MAX_STEPS = 1 << 20  # of a decoder outside the pixels, see `containers`
URL_TIMEOUT_S = 30.0

# Raster formats only: Pillow would hand PostScript to another program.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF"),
    *("JPEG2000", "AVIF", "ICO", "TGA", "PCX", "HEIF"),
)
# Formats that need more memory for a pixel, so that fewer pixels are allowed: a picture at the
# bound takes at most 800 MB.
_PIXEL_WEIGHT = {"WEBP": 1.5, "JPEG2000": 1.5, "HEIF": 1.5}


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """The keywords of `load_image`, and what messages call the picture."""

    max_pixels: int
    rendering: Rendering
    allow_url: bool = False
    allow_video: bool = True
    says_frame: bool = True
    name: str = "the picture"


def load_image(
    source: ImageSource,
    *,
    frame: int | None = None,
    allow_url: bool = False,
    allow_video: bool = True,
    max_pixels: int = MAX_PIXELS,
    upright: bool = True,
    background: str = colours.WHITE,
) -> NDArray[np.uint8]:
    """Reads one picture.

    Args:
        source: path, encoded bytes, binary stream, Pillow image or array. An array is [H, W],
            [H, W, 1], [H, W, 3] or [H, W, 4], of bool, uint8, uint16 or float in [0, 1]. A string
            is a path, a data: or file: address, base64 or, starting with http:// or https://, a
            URL. What is read may also be a video.
        frame: number of the page or frame, from 0; by default the first, with a warning where
            there are others.
        allow_url: whether URLs may be fetched.
        allow_video: whether frames of videos are read.
        max_pixels: largest width x height, checked before decoding. Pillow itself refuses
            more than 178 million.
        upright: apply EXIF orientation.
        background: colour under transparent parts; "none" drops transparency.

    Returns:
        uint8[H, W, 3] RGB.

    Raises:
        ImageError: unreadable, truncated, too large, of a wrong shape or range, without that frame,
            or an URL that was not allowed or not reachable.
        ConfigError: a background that is no colour.
    """
    rendering = Rendering(upright=upright, background=colours.background_rgb(background))
    reading = _Reading(
        allow_url=allow_url, allow_video=allow_video, max_pixels=max_pixels, rendering=rendering
    )
    return _load(source, [frame], reading)[0]


def load_frames(
    source: ImageSource,
    frames: FrameChoice | None = None,
    *,
    allow_url: bool = False,
    max_pixels: int = MAX_PIXELS,
    background: str = colours.WHITE,
) -> list[NDArray[np.uint8]]:
    """Reads frames of a video or an animation, or pages of a TIFF; all of them by default.

    Args:
        source: as for `load_image`.
        frames: their numbers, from 0, in the order of the result; or `EvenFrames`, or `FramesAt`.
        allow_url, background: as for `load_image`.
        max_pixels: most pixels of all these frames together.

    Raises:
        ImageError: as for `load_image`, and for more than `MAX_FRAMES` frames.
    """
    rendering = Rendering(background=colours.background_rgb(background))
    reading = _Reading(allow_url=allow_url, max_pixels=max_pixels, rendering=rendering)
    return _load(source, frames, reading)


def load_as_original(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, upright: bool = False
) -> NDArray[np.uint8]:
    """Reads one picture as big_vision's decoder does, which evaluation keeps.

    Pixels lie as they are stored, transparency is dropped, 16 bits keep their high byte, and of an
    animation the first frame counts. Arguments and errors as for `load_image`.
    """
    rendering = Rendering(upright=upright, background=None, scale_levels=False)
    reading = _Reading(max_pixels=max_pixels, rendering=rendering, says_frame=False)
    return _load(source, [None], reading)[0]


def _load(
    source: ImageSource, frames: FrameChoice | None, reading: _Reading
) -> list[NDArray[np.uint8]]:
    from PIL import Image

    if isinstance(frames, np.ndarray) and frames.ndim == 1:
        frames = frames.tolist()
    if not isinstance(frames, EvenFrames | FramesAt | None):
        if isinstance(frames, str | bytes) or not isinstance(frames, Sequence):
            raise ImageError(f"frames are a list of their numbers, got {reprlib.repr(frames)}")
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise ImageError(f"1 to {MAX_FRAMES} frames are read at once, got {len(frames)}")
    if isinstance(source, np.ndarray):
        reading = replace(reading, name="the array")
        numbers_of(frames, 1, reading.name)
        return [_from_array(np.asarray(source), reading)]  # a matrix or masked array, too
    if isinstance(source, Image.Image):
        return _frames_of(source, None, None, frames, replace(reading, name="the image"))
    path = regular_file(source)
    if path is not None and (kind := video.container_of(heading_of(path, video.HEADING_BYTES))):
        return _of_video(path, kind, frames, replace(reading, name=shown_name(str(source))))
    data, name = encoded_bytes(
        source, allow_url=reading.allow_url, timeout_s=URL_TIMEOUT_S, max_bytes=MAX_ENCODED_BYTES
    )
    reading = replace(reading, name=name)
    if kind := video.container_of(data[: video.HEADING_BYTES]):
        return _of_video(io.BytesIO(data), kind, frames, reading)
    return _from_bytes(data, frames, reading)


def _of_video(
    file: Path | IO[bytes], kind: str, frames: FrameChoice | None, reading: _Reading
) -> list[NDArray[np.uint8]]:
    if not reading.allow_video:
        raise ImageError(
            f"only pictures are read here, {reading.name} is a video; take frames of it"
        )
    name, most = reading.name, reading.max_pixels
    try:
        with video.open_video(file, name, most, container=kind, max_together=most) as opened:
            return video.video_frames(opened, frames, name)
    except MissingExtraError as error:  # as of a picture whose format is not read
        raise ImageError(str(error)) from error


def _from_bytes(
    data: bytes, frames: FrameChoice | None, reading: _Reading
) -> list[NDArray[np.uint8]]:
    from PIL import Image

    name = reading.name
    require_size(len(data), name, MAX_ENCODED_BYTES)
    cost = cost_of(data, MAX_STEPS)
    _require_cost(cost, reading)
    if pnm.is_pnm(data):
        numbers_of(frames, 1, name)
        levels, largest = pnm.read_pnm(data, name)
        grey = colours.grey_levels(levels, name, largest, scale=True)
        return [colours.rgb_of_array(grey, name, None)]
    try:
        image = open_heading(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(_too_many_pixels(name, "more than 178 million", reading)) from error
    except Exception as error:  # hostile headers raise whatever a plugin stumbles over
        raise ImageError(
            f"a picture must be JPEG, PNG, WebP, GIF, BMP, TIFF or another raster format, "
            f"{name} cannot be recognised as one{kind_of_data(data)}; convert it first"
        ) from error
    return _frames_of(image, data, cost, frames, reading)


def open_heading(file: Path | IO[bytes]) -> ImageFile.ImageFile:
    """Open a picture in one of `FORMATS` and read no more than its heading.

    Modules for rarer formats are imported only for them.

    Raises:
        Exception: whatever a plugin stumbles over in a damaged heading.
    """
    from PIL import Image, UnidentifiedImageError

    def opened() -> ImageFile.ImageFile:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])

    Image.preinit()
    try:
        return opened()
    except UnidentifiedImageError:
        Image.init()
        register_heif()
        return opened()


def picture_sizes_hw(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of a picture, upright and as stored, from its heading alone.

    Raises:
        ImageError: no picture.
    """
    try:
        with open_heading(path) as picture:
            width, height = picture.size
            is_on_its_side = picture.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception as error:  # damaged headings raise whatever a plugin stumbles over
        raise ImageError(f"{path} must be a picture: {str(error)[:200]}") from error
    return ((width, height) if is_on_its_side else (height, width)), (height, width)


def _require_cost(cost: Cost, reading: _Reading) -> None:
    """Refuse what the structure of a file announces beyond the bounds."""
    name = reading.name
    if cost.width and cost.height:
        _require_pixels(cost.width, cost.height, reading)
    num_pixels = cost.width * cost.height * cost.num_passes
    if num_pixels > MAX_PASSES_AT_FULL_SIZE * reading.max_pixels:
        raise ImageError(
            f"decoding may visit {MAX_PASSES_AT_FULL_SIZE} times {reading.max_pixels} pixels, "
            f"{name} needs {cost.num_passes} passes over {cost.width}x{cost.height}; save it again"
        )
    if cost.num_steps > MAX_STEPS:
        raise ImageError(
            f"a picture may be made of {MAX_STEPS} steps of its decoder, {name} has more parts, "
            "comments, metadata or, as JPEG 2000, code than that; save it without them, or as PNG"
        )
    require_size(cost.num_bytes, f"the metadata of {name}", MAX_ENCODED_BYTES)


def _too_many_pixels(name: str, found: str, reading: _Reading) -> str:
    return (
        f"a picture may have {reading.max_pixels} pixels, {name} has {found}; "
        "shrink it first (in Python, max_pixels may be raised)"
    )


def _require_pixels(width: int, height: int, reading: _Reading, weight: float = 1.0) -> None:
    name = reading.name
    if width < 1 or height < 1:
        raise ImageError(f"a picture must have at least one pixel, {name} is {width}x{height}")
    if width * height * weight > reading.max_pixels:
        found = f"{width}x{height} = {width * height}"
        if weight > 1:
            found += f", each counted {weight:g} times for the memory that its format needs"
        raise ImageError(_too_many_pixels(name, found, reading))


def _frames_of(
    image: Image.Image,
    data: bytes | None,
    cost: Cost | None,
    frames: FrameChoice | None,
    reading: _Reading,
) -> list[NDArray[np.uint8]]:
    """Decode frames of an opened picture; a Pillow image of the caller's stays where it is."""
    name, max_pixels = reading.name, reading.max_pixels
    _require_pixels(*image.size, reading, _PIXEL_WEIGHT.get(image.format or "", 1.0))
    num_frames = _num_frames(image, cost)
    frames = numbers_of(frames, num_frames, name)
    size = image.width * image.height
    if len(frames) > MAX_FRAMES or size * len(frames) > max_pixels:
        raise ImageError(
            f"frames read at once may be {MAX_FRAMES} of together {max_pixels} pixels, {name} has "
            f"{len(frames)} of {image.width}x{image.height}; choose fewer"
        )
    start = image.tell() if num_frames > 1 else 0
    chosen = [start if frame is None else frame for frame in frames]
    if size * (max(chosen) + 1) > MAX_PASSES_AT_FULL_SIZE * max_pixels:
        raise ImageError(
            f"decoding may visit {MAX_PASSES_AT_FULL_SIZE} times {max_pixels} pixels, and frame "
            f"{max(chosen)} of {name} comes after that many; choose an earlier one"
        )
    if None in frames and num_frames > 1 and reading.says_frame:
        logger.warning(
            "%s has %d frames, and frame %d is read (the first is 0); choose with --frame, or "
            "frames= in Python",
            name,
            num_frames,
            start,
        )
    found = []
    for frame in chosen:
        with _undamaged(name):
            if num_frames > 1 and frame != image.tell():
                image.seek(frame)
                _require_pixels(*image.size, reading)
            again = None if data is None else partial(_opened_at, data, frame)
            bits = None if cost is None else cost.significant_bits
            found.append(decode(image, name, reading.rendering, bits, again))
    if data is None and num_frames > 1:
        image.seek(start)
    return found


def _opened_at(data: bytes, frame: int) -> ImageFile.ImageFile:
    image = open_heading(io.BytesIO(data))
    image.seek(frame)
    return image


@contextmanager
def _undamaged(name: str) -> Iterator[None]:
    """Truncated and hostile data raise whatever the decoder meets; here it becomes a sentence."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"a picture must be complete and undamaged, {name} cannot be decoded "
            f"({str(error)[:200]}); save it again"
        ) from error


def _num_frames(image: Image.Image, cost: Cost | None) -> int:
    if image.format == "MPO":  # a thumbnail, depth or gain map stands beside the picture
        return 1
    if cost is not None and cost.num_frames is not None:
        return max(cost.num_frames, 1)
    return int(getattr(image, "n_frames", 1))


def _from_array(array: NDArray[Any], reading: _Reading) -> NDArray[np.uint8]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"an image array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got "
            f"{list(array.shape)}; move the channels last, or state layout='CHW'"
        )
    name, rendering = reading.name, reading.rendering
    _require_pixels(array.shape[1], array.shape[0], reading)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = colours.grey_levels(array, name, None, scale=rendering.scale_levels)
    elif array.dtype.kind == "f":
        array = colours.grey_floats(array, name)
    elif array.dtype != np.uint8:
        raise ImageError(
            f"an image array must be bool, uint8, uint16 or float in [0, 1], got {array.dtype}; "
            "convert it to uint8 first"
        )
    return colours.rgb_of_array(array, name, rendering.background)
