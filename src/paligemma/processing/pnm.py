"""PBM, PGM and PPM, plain and raw. Pillow reads them number by number in Python."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import ImageError

_GAP = rb"(?:\s|#[^\r\n]{0,4096}[\r\n])+"
_BITS = re.compile(rb"P([14])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
_LEVELS = re.compile(
    rb"P([2356])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,5})\s"
)
_COMMENT = re.compile(rb"#[^\r\n]*")
_MAX_HEADING = 1 << 16
_MAX_NUMBER_BYTES = 16  # with the blanks around it


def heading(data: bytes) -> re.Match[bytes] | None:
    """Kind, width, height and, but for bitmaps, the largest level; None where it is damaged."""
    return _BITS.match(data[:_MAX_HEADING]) or _LEVELS.match(data[:_MAX_HEADING])


def is_pnm(data: bytes) -> bool:
    """Whether the first bytes announce one of the six formats."""
    return data[:1] == b"P" and data[1:2] in b"123456" and data[2:3] in b"\t\n\v\f\r #"


def read_pnm(data: bytes, name: str) -> tuple[NDArray[Any], int]:
    """Levels and the largest level that the file states.

    Args:
        data: the file, its size and comments within the bounds.
        name: what errors call it.

    Returns:
        uint8 or uint16[H, W] or [H, W, 3], and the largest level.

    Raises:
        ImageError: damaged or incomplete.
    """
    found = heading(data)
    if found is None:
        raise _damaged(name, "its heading is damaged")
    kind, width, height = (int(number) for number in found.groups()[:3])
    largest = int(found[4]) if kind not in (1, 4) else 1
    if not 1 <= largest <= 0xFFFF:
        raise _damaged(name, f"its largest level is {largest}")
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    if kind == 4:
        row = -(-width // 8)
        packed = _taken(np.frombuffer(data, np.uint8, offset=found.end()), height * row, name)
        bits = np.unpackbits(packed.reshape(height, row), axis=1)[:, :width]
        return 1 - bits, 1
    count = height * width * (3 if kind in (3, 6) else 1)
    if kind in (5, 6):
        dtype = np.dtype(np.uint8 if largest < 256 else ">u2")
        samples = np.frombuffer(data[found.end() : found.end() + count * dtype.itemsize], np.uint8)
        levels = _taken(samples, count * dtype.itemsize, name).view(dtype)
    elif kind == 1:  # blanks between the digits are optional
        digits = _COMMENT.sub(b"", data[found.end() :]).translate(None, b" \t\n\v\f\r")
        levels = 1 - (_taken(np.frombuffer(digits, np.uint8), count, name) - ord("0"))
    else:
        try:
            text = _COMMENT.sub(b"", data[found.end() :])[: max(_MAX_NUMBER_BYTES * count, 1 << 20)]
            levels = _taken(np.fromstring(text.decode("ascii"), np.int32, sep=" "), count, name)
        except (ValueError, DeprecationWarning) as error:
            raise _damaged(name, "its numbers are damaged") from error
    if int(levels.min()) < 0 or int(levels.max()) > largest:
        raise _damaged(name, f"a level is not in 0..{largest}")
    return levels.astype(np.uint16 if largest > 255 else np.uint8).reshape(shape), largest


def _taken(samples: NDArray[Any], count: int, name: str) -> NDArray[Any]:
    if len(samples) < count:
        raise _damaged(name, f"{len(samples)} of {count} numbers are there")
    return samples[:count]


def _damaged(name: str, why: str) -> ImageError:
    return ImageError(
        f"a picture must be complete and undamaged, {name} cannot be decoded ({why}); save it again"
    )
