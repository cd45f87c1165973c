"""Frames of a video file as pictures, decoded by PyAV within bounds.

Only containers that are recognised by their first bytes are opened, each by its own reader:
playlists and the like, which lead a decoder to other files, are not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import ImageError, MissingExtraError
from paligemma.processing.frames import (
    MAX_FRAMES,
    EvenFrames,
    FrameChoice,
    FramesAt,
    require_numbers,
)

logger = logging.getLogger(__name__)

# Decoders round sides up.
_MARGIN_PIXELS = 1 << 16
# Pixels that may be decoded on the way to the wanted frames, in pictures of the largest size.
MAX_DECODED = 256
# Boxes a film of QuickTime's family begins with, and brands of it that are pictures.
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_PICTURE_BRANDS = (
    *(b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
    *(b"mif1", b"mif2", b"msf1", b"crx ", b"jp2 "),
)
# First bytes, and PyAV's name of the container.
_CONTAINERS = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"\0\0\1\xba", "mpeg"),
    (b"\0\0\1\xb3", "mpegvideo"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
)
HEADING_BYTES = 512
_LAST_SHOWN_S = 0.5  # how long the last frame counts where a file states no true end

Frame = tuple[float, Callable[[], NDArray[np.uint8]]]


def container_of(heading: bytes) -> str | None:
    """PyAV's name of the container that begins with these bytes; None where it is no video."""
    if heading[4:8] in _BOXES and heading[8:12] not in _PICTURE_BRANDS:
        return "mp4"
    if heading[:4] == b"RIFF" and heading[8:12] == b"AVI ":
        return "avi"
    if heading[:1] == heading[188:189] == heading[376:377] == b"\x47":
        return "mpegts"
    return next((name for magic, name in _CONTAINERS if heading.startswith(magic)), None)


class Video:
    """The pictures of an opened video, in time order; see `open_video`."""

    def __init__(
        self, container: Any, name: str, max_pixels: int, max_together: int | None
    ) -> None:
        if not container.streams.video:
            raise ImageError(f"a video must hold pictures, {name} has only sound or text")
        self._container, self._name, self._max_pixels = container, name, max_pixels
        self._stream = stream = container.streams.video[0]
        # The decoder itself refuses larger frames before it has memory for one.
        stream.codec_context.options = {"max_pixels": str(2 * max_pixels + _MARGIN_PIXELS)}
        self._require_pixels(stream.codec_context)
        self._zero_s = float((stream.start_time or 0) * stream.time_base)
        self._left = MAX_DECODED * max_pixels
        self._together, self._max_together = 0, max_together

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """(Time in seconds, function that gives the picture) from the key frame before a time on.

        Raises:
            ImageError: larger than the bound, or more than may be decoded of one video.
        """
        decoded = self._decoded_from(start_s) if start_s > 0 else self._decoded()
        for time_s, frame in decoded:
            yield time_s, partial(self._pixels, frame)

    def _decoded_from(self, start_s: float) -> Iterator[tuple[float, Any]]:
        back_s = 0.0
        while back_s < start_s:
            target_s = min(start_s, self.duration_s) - back_s + self._zero_s
            place = int(target_s / self._stream.time_base)
            self._container.seek(place, stream=self._stream)
            decoded = self._decoded()
            first = next(decoded, None)
            if first is not None and first[0] <= start_s:
                return chain([first], decoded)
            back_s = 2 * back_s + 1  # streams without an index land behind the time
        self._container.seek(0)
        return self._decoded()

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        for frame in self._container.decode(self._stream):
            self._left -= frame.width * frame.height
            if self._left < 0:
                raise ImageError(
                    f"of a video {MAX_DECODED} times {self._max_pixels} pixels are decoded, "
                    f"{self._name} needs more; choose fewer or earlier frames, or shrink it"
                )
            time_s = 0.0 if frame.time is None else frame.time - self._zero_s
            yield time_s, frame

    @cached_property
    def duration_s(self) -> float:
        """Where the last frame begins, or a little later; of files that state none, by a walk."""
        stream, container = self._stream, self._container
        if stream.duration:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return float(container.duration / 1_000_000)
        last = max((one.pts for one in container.demux(stream) if one.pts is not None), default=0)
        container.seek(0)
        return float(last * stream.time_base) - self._zero_s

    def _pixels(self, frame: Any) -> NDArray[np.uint8]:
        self._require_pixels(frame)
        self._together += frame.width * frame.height
        if self._max_together is not None and self._together > self._max_together:
            raise ImageError(
                f"frames read at once may have {self._max_together} pixels together, those of "
                f"{self._name} have {frame.width}x{frame.height} each; choose fewer"
            )
        pixels = frame.to_ndarray(format="rgb24")
        # Players turn what a telephone filmed on its side; so do extracted frames.
        return np.ascontiguousarray(np.rot90(pixels, getattr(frame, "rotation", 0) // 90))

    def _require_pixels(self, frame: Any) -> None:
        if frame.width * frame.height > self._max_pixels:
            raise ImageError(
                f"a picture may have {self._max_pixels} pixels, frames of {self._name} have "
                f"{frame.width}x{frame.height}; raise max_pixels"
            )


@contextmanager
def open_video(
    file: Path | IO[bytes],
    name: str,
    max_pixels: int,
    *,
    container: str | None = None,
    max_together: int | None = None,
) -> Iterator[Video]:
    """A video until the end of the block; whatever its decoder raises there becomes a sentence.

    Args:
        file: path, or a binary stream that can be positioned.
        name: what messages call it.
        max_pixels: bound of a frame.
        container: what `container_of` found; None leaves it to the decoder to find.
        max_together: bound of all pictures that are taken; None for a caller who keeps few.

    Raises:
        ImageError: damaged, no video, or beyond a bound.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            f"reading the video {name} needs av; run pip install 'paligemma[video]'"
        ) from error
    try:
        with av.open(str(file) if isinstance(file, Path) else file, format=container) as opened:
            yield Video(opened, name, max_pixels, max_together)
    except (ImageError, MissingExtraError):
        raise
    except Exception as error:  # damaged videos raise whatever the decoder stumbles over
        raise ImageError(
            f"the video {name} cannot be decoded ({str(error)[:200]}); download it again"
        ) from error


def video_frames(video: Video, frames: FrameChoice | None, name: str) -> list[NDArray[np.uint8]]:
    """The chosen frames of a video in the order of the choice; None stands for all of them.

    Raises:
        ImageError: there is no such frame, or more than the bounds allow.
    """
    if isinstance(frames, EvenFrames):
        length, count = video.duration_s, frames.num_frames
        times = [(2 * part + 1) * length / (2 * count) for part in range(count)]
        found = list(dict(_at_times(video, times, name)).values())
    elif isinstance(frames, FramesAt):
        found = [picture for _, picture in _at_times(video, frames.times_s, name)]
    elif frames is None:
        found = [
            read() for (_, read), _ in zip(video.frames(), range(MAX_FRAMES + 1), strict=False)
        ]
        if len(found) > MAX_FRAMES:
            raise ImageError(
                f"frames read at once may be {MAX_FRAMES}, the video {name} has more; choose some "
                "by number or time, or so many evenly spaced"
            )
    else:
        found = _numbered(video, frames, name)
    if not found:
        raise ImageError(f"a video must hold a frame, {name} has none; it may be cut short")
    return found


def _numbered(video: Video, frames: Sequence[int | None], name: str) -> list[NDArray[np.uint8]]:
    if None in frames:
        logger.warning(
            "%s is a video, and its first frame is read; choose with --frame, or frames= in Python",
            name,
        )
    wanted = [0 if frame is None else frame for frame in frames]
    require_numbers(wanted, name)
    found, num_seen = {}, 0
    for number, (_, read) in enumerate(video.frames()):
        num_seen = number + 1
        if number in wanted:
            found[number] = read()
        if number >= max(wanted):
            break
    require_numbers(wanted, name, num_seen)
    return [found[frame] for frame in wanted]


def _at_times(
    video: Video, times_s: Sequence[float], name: str
) -> list[tuple[float, NDArray[np.uint8]]]:
    """(Its own time, picture) of the frame shown at each of these times."""
    shown: dict[float, tuple[float, NDArray[np.uint8]]] = {}
    for time_s in sorted(set(times_s)):
        before: Frame | None = None
        for frame in video.frames(time_s):
            if before is not None and frame[0] > time_s:
                break
            before = frame
        if before is None or time_s > max(before[0] + _LAST_SHOWN_S, video.duration_s):
            end_s = video.duration_s if before is None else before[0]
            raise ImageError(
                f"a time must lie within the video, {name} ends after {end_s:.2f} s, got "
                f"{time_s:g} s"
            )
        shown[time_s] = before[0], before[1]()
    return [shown[time_s] for time_s in times_s]
