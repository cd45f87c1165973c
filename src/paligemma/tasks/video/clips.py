"""Frames of a video as pictures of an example: from a folder of extracted frames or a video file.

A stride counts frames as they are stored, so extract them at the rate of the video. A clip with too
few frames starts over from its first one.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.processing.frames import sample_frames
from paligemma.processing.image import load_as_original
from paligemma.processing.video import Video, open_video
from paligemma.tasks.reading.finding import plain_name

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".flv", ".mpg", ".mpeg", ".m4v")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

# Frames are read one by one, so the clip decoded last is kept; two clips, because a reader may work
# ahead. A clip has one lock, so that threads reading its frames decode it once.
_CLIPS_KEPT = 2
_LOCKS = tuple(threading.Lock() for _ in range(16))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Some frames of one video.

    Attributes:
        path: a folder with one picture a frame, in the order of their names, or a video file.
        start_s, end_s: bounds of the segment; the whole video if `end_s` is None.
        duration_s: duration of the whole video, by which a segment is found in a folder of frames.
    """

    path: Path
    num_frames: int
    stride: int
    start_s: float = 0.0
    end_s: float | None = None
    duration_s: float | None = None

    def frames(self) -> tuple[ClipFrame, ...]:
        """Return one picture a shown frame, without reading any."""
        return tuple(ClipFrame(clip=self, index=index) for index in range(self.num_frames))


@dataclass(frozen=True, kw_only=True)
class ClipFrame:
    """Frame `index` among the shown frames of a clip."""

    clip: Clip
    index: int

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3].

        Raises:
            ImageError: no frame in the segment, damaged, or larger than the bound.
            MissingExtraError: a video file, and PyAV is not installed.
        """
        clip = self.clip
        if clip.path.is_dir():
            files = _segment(clip, _listing(clip.path))
            shown = sample_frames(files, clip.num_frames, clip.stride)[self.index]
            return load_as_original(shown, max_pixels=max_pixels)
        with _LOCKS[hash(clip) % len(_LOCKS)]:
            decoded = _decode(clip, max_pixels)
        # A copy: whoever draws on a picture must not draw on the kept clip.
        return decoded[self.index % len(decoded)].copy()


class Videos:
    """Finds videos below a data folder, and counts those that are missing.

    Many videos of these benchmarks are no longer available. Published scores rest on those that
    were, so a missing video is left out and named in the log; only a lack of all is an error.
    """

    def __init__(self, data: Path, folders: Sequence[str], *, num_frames: int, stride: int) -> None:
        self._data = data
        self._roots = [data / name for name in folders if (data / name).is_dir()]
        self._folders = tuple(folders)
        self._shown = {"num_frames": num_frames, "stride": stride}
        self._found: dict[str, Path | None] = {}

    def find(self, *names: str) -> Clip | None:
        """Find the video of the first name that exists: a folder of frames, else a video file."""
        key = names[0]
        if key not in self._found:
            self._found[key] = next(self._candidates(names), None)
        path = self._found[key]
        return None if path is None else Clip(path=path, **self._shown)

    def missing(self) -> list[str]:
        """Return the names that were not found, in order."""
        return [name for name, path in self._found.items() if path is None]

    def report(self, task: str, source: str) -> None:
        """Log how many videos were found, after the last look-up.

        Raises:
            DataError: no video was found.
        """
        missing = self.missing()
        if len(missing) == len(self._found):
            raise DataError(
                f"{task} needs folders of frames, or video files, named after the videos below "
                f"{self._data} in {', '.join(self._folders)}; found none of {len(missing)}, such "
                f"as {', '.join(missing[:3]) or 'no name at all'}; {source}"
            )
        if missing:
            logger.warning(
                "%s: %d of %d videos are not on disk and are left out (%s%s); the score is not "
                "quite comparable, keep the list of ids with it",
                task,
                len(missing),
                len(self._found),
                ", ".join(missing[:5]),
                ", ..." if len(missing) > 5 else "",
            )

    def _candidates(self, names: Sequence[str]) -> Iterator[Path]:
        for root in self._roots:
            for name in filter(plain_name, names):
                folder = root / name
                if os.path.isdir(folder) and next(_frame_files(folder), None) is not None:
                    yield folder
                for suffix in VIDEO_SUFFIXES:
                    if os.path.isfile(file := root / f"{name}{suffix}"):
                        yield file


def _frame_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix.lower() in FRAME_SUFFIXES)


@lru_cache(maxsize=_CLIPS_KEPT)
def _listing(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(_frame_files(folder), key=lambda file: file.name))


def _segment(clip: Clip, files: tuple[Path, ...]) -> tuple[Path, ...]:
    """The frames between `start_s` and `end_s`, at least one, by their share of the duration."""
    if clip.end_s is None:
        return files
    if not clip.duration_s:
        raise ImageError(
            f"a segment of the frames in {clip.path} needs the duration of the video, got "
            f"{clip.duration_s}; give a video file instead"
        )
    first = min(int(clip.start_s / clip.duration_s * len(files)), len(files) - 1)
    last = math.ceil(clip.end_s / clip.duration_s * len(files))
    return files[max(first, 0) : max(last, first + 1)]


@lru_cache(maxsize=_CLIPS_KEPT)
def _decode(clip: Clip, max_pixels: int) -> list[np.ndarray]:
    """Every `stride`-th frame of a video file, at most `num_frames`; fewer if it is short."""
    with open_video(clip.path, str(clip.path), max_pixels) as video:
        kept = list(_wanted(video, clip))
    if not kept:
        raise ImageError(
            f"the video {clip.path} has no frame between {clip.start_s:g} s and {clip.end_s} s; "
            "it may be cut short"
        )
    return kept


def _wanted(video: Video, clip: Clip) -> Iterator[np.ndarray]:
    num_seen = num_kept = 0
    for time_s, read in video.frames(clip.start_s):
        if time_s < clip.start_s:
            continue
        is_after = clip.end_s is not None and time_s >= clip.end_s
        if num_kept == clip.num_frames or (num_kept and is_after):
            return
        if num_seen % clip.stride == 0:
            num_kept += 1
            yield read()
        num_seen += 1
