"""Choosing the frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from paligemma.errors import ImageError

MAX_FRAMES = 128

_Frame = TypeVar("_Frame")


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
