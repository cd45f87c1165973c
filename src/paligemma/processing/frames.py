"""The frames of one example, and how those of a clip are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from paligemma.errors import ImageError

MAX_FRAMES = 128

_Frame = TypeVar("_Frame")


class Frames(tuple[Any, ...]):
    """Pictures that are the frames of one example, in time order; they go wherever a picture does.

    Args:
        pictures: the pictures, or one list of them, or an array or a tensor with an axis of frames
            in front.

    Raises:
        ImageError: none, more than `MAX_FRAMES`, or frames of frames.
    """

    def __new__(cls, *pictures: Any) -> Frames:
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
