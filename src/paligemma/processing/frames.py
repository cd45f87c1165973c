"""The frames of one example, and how those of a clip are chosen."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeAlias, TypeVar

from paligemma.errors import ImageError

MAX_FRAMES = 128

_Frame = TypeVar("_Frame")


class Frames(tuple[Any, ...]):
    """Pictures that are the frames of one example, in time order; they go where a picture does."""

    def __new__(cls, *pictures: Any) -> Frames:
        """Put frames together.

        Args:
            *pictures: the pictures, or one list of them, or an array or a tensor with an axis of
                frames in front.

        Raises:
            ImageError: none, more than `MAX_FRAMES`, or frames of frames.
        """
        if len(pictures) == 1 and several_of(pictures[0]) is not None:
            (pictures,) = pictures
        found = super().__new__(cls, pictures)
        if not 1 <= len(found) <= MAX_FRAMES:
            raise ImageError(f"an example has 1 to {MAX_FRAMES} frames, got {len(found)}")
        if any(isinstance(one, list | tuple) for one in found):
            raise ImageError("a frame is one picture, got a list; name all frames in one list")
        return found


def several_of(image: Any) -> Sequence[Any] | None:
    """The pictures of a list or of an array with an axis too many; None where it is one picture.

    `Frames` are one picture.
    """
    if isinstance(image, Frames) or not (
        isinstance(image, list | tuple) or getattr(image, "ndim", 0) == 4
    ):
        return None
    return image if isinstance(image, list | tuple) else list(image)


def sample_frames(
    frames: Sequence[_Frame], num_frames: int, stride: int = 1, offset: int = 0
) -> list[_Frame]:
    """Every `stride`-th frame from `offset` on; a short clip is repeated from its start.

    Args:
        frames: the clip in time order.
        num_frames: how many to return.
        stride: distance in frames.
        offset: first frame; 0 in evaluation, random in training.

    Raises:
        ImageError: no frame, or a count, stride or offset out of range.

    Source: big_vision pp/proj/paligemma/video.py (cyclic repetition, not of the last frame).
    """
    if not 1 <= num_frames <= MAX_FRAMES or stride < 1:
        raise ImageError(
            f"num_frames must lie in 1..{MAX_FRAMES} and stride be at least 1, "
            f"got {num_frames} and {stride}"
        )
    if not 0 <= offset < len(frames):
        raise ImageError(
            f"a clip must hold its first frame, got offset {offset} and {len(frames)} frames"
        )
    picked = list(frames[offset::stride])
    return [picked[index % len(picked)] for index in range(num_frames)]


@dataclass(frozen=True)
class EvenFrames:
    """So many frames of a video or animation, evenly spaced; all of one that has fewer.

    Raises:
        ImageError: a count beyond the bound.
    """

    num_frames: int

    def __post_init__(self) -> None:
        if not isinstance(self.num_frames, int) or not 1 <= self.num_frames <= MAX_FRAMES:
            raise ImageError(
                f"1 to {MAX_FRAMES} frames are read at once, got {self.num_frames!r:.80}"
            )

    def of(self, num_frames: int) -> list[int]:
        """Their numbers among so many frames, each from the middle of its part."""
        count = min(self.num_frames, num_frames)
        return [(2 * part + 1) * num_frames // (2 * count) for part in range(count)]


@dataclass(frozen=True)
class FramesAt:
    """The frames of a video that are shown at these times, in seconds from its start.

    Raises:
        ImageError: no time, too many, or one below 0.
    """

    times_s: Sequence[float]

    def __post_init__(self) -> None:
        times = self.times_s
        if not isinstance(times, list | tuple) or not 1 <= len(times) <= MAX_FRAMES:
            raise ImageError(
                f"times are a list of 1 to {MAX_FRAMES} numbers of seconds, got "
                f"{reprlib.repr(times)}"
            )
        for time_s in times:
            if not isinstance(time_s, int | float) or not 0 <= time_s < float("inf"):
                raise ImageError(f"a time is a number of seconds from 0, got {time_s!r:.80}")


def require_numbers(frames: Sequence[int | None], name: str, num_frames: int | None = None) -> None:
    """Raises ImageError where one is no number of a frame, or lies beyond so many."""
    for frame in frames:
        is_number = isinstance(frame, Integral) and not isinstance(frame, bool)
        if frame is None or (is_number and 0 <= frame < (num_frames or float("inf"))):
            continue
        known = f"in 0..{num_frames - 1}, the frames" if num_frames else "at or after 0, the first"
        raise ImageError(f"a frame must lie {known} of {name}, got {reprlib.repr(frame)}")


FrameChoice: TypeAlias = "Sequence[int | None] | EvenFrames | FramesAt"


def numbers_of(frames: FrameChoice | None, num_frames: int, name: str) -> Sequence[int | None]:
    """The numbers that a choice among so many frames means; all of them for None.

    Raises:
        ImageError: one is none of theirs, or times of what is no video.
    """
    if frames is None:
        return range(num_frames)
    if isinstance(frames, EvenFrames):
        return frames.of(num_frames)
    if isinstance(frames, FramesAt):
        raise ImageError(
            f"times choose frames of a video, {name} is none; choose frames by number, or so many "
            "evenly spaced"
        )
    require_numbers(frames, name, num_frames)
    return frames


def parse_frames(text: str) -> int | list[int] | EvenFrames | FramesAt | Literal["all"]:
    """The choice that a command line states: "3", "0,5,9", "1.5s,3s", "even:8" or "all".

    Raises:
        ImageError: none of these.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        if text == "all":
            return "all"
        if text.startswith("even:"):
            return EvenFrames(int(text.removeprefix("even:")))
        if all(part.endswith("s") for part in parts):
            return FramesAt([float(part.removesuffix("s")) for part in parts])
        numbers = [int(part) for part in parts]
    except ValueError as error:
        raise ImageError(
            "frames are a number from 0, several (0,5,9), times (1.5s,3s), even:8 for so many "
            f"evenly spaced, or all, got {text!r:.80}"
        ) from error
    return numbers[0] if len(numbers) == 1 else numbers
