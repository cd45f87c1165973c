"""A small video whose frames grow from black to white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_video(
    file: Path | Any,
    num_frames: int,
    *,
    codec: str = "mpeg4",
    container: str | None = None,
    rate: int = 10,
) -> None:
    """Frame i of n is grey of level 255 * i / (n - 1), 64 x 48 pixels."""
    import av

    with av.open(str(file) if isinstance(file, Path) else file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            level = 255 * number // max(num_frames - 1, 1)
            grey = np.full((48, 64, 3), level, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        output.mux(stream.encode())
