"""JSON from outside, within bounds: bytes, depth, and numbers that a float can hold.

What is read takes at most 30 times the bytes of its file in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

# Of a file that describes something: a config, an index, a calibration, a run.
MAX_BYTES = 4 << 20
MAX_DEPTH = 64
_PIECE_BYTES = 1 << 20
# Every whole number of so many digits is within the range of a float.
_MAX_DIGITS = 308


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, finite: bool = True) -> Any:
    """The content of a JSON file.

    Args:
        finite: see `parse_json`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has more bytes than `max_bytes`, or see `parse_json`.
    """
    data = bytearray()
    with open(path, "rb") as file:  # in pieces: one read would ask for the bound, not the file
        while len(data) <= max_bytes and (piece := file.read(_PIECE_BYTES)):
            data += piece
    if len(data) > max_bytes:
        raise ValueError(f"it may have {max_bytes} bytes and has more")
    return parse_json(data, finite=finite)


def parse_json(
    text: str | bytes | bytearray, *, finite: bool = True, max_depth: int = MAX_DEPTH
) -> Any:
    """The value of JSON text.

    Args:
        finite: refuse the whole text for a number that is infinite, NaN or beyond the range of a
            float; otherwise these are floats, for a reader that names the row with one.
        max_depth: how deep objects and lists may be nested.

    Raises:
        ValueError: no JSON, too deep, or a number that is refused.
    """
    kinds: dict[str, Any] = {"parse_int": _whole_or_infinite}
    if finite:
        kinds = {"parse_float": _real, "parse_int": _whole, "parse_constant": _refuse}
    try:
        value = json.loads(text, **kinds)
    except RecursionError:
        raise _too_deep(max_depth) from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return value
    raise _too_deep(max_depth)


def _too_deep(max_depth: int) -> ValueError:
    return ValueError(f"objects and lists may be nested {max_depth} deep")


def _real(text: str) -> float:
    value = float(text)
    return value if value - value == 0.0 else _refuse(text)


def _whole(text: str) -> int:
    return int(text) if len(text) <= _MAX_DIGITS else _refuse(text)


def _whole_or_infinite(text: str) -> int | float:
    return int(text) if len(text) <= _MAX_DIGITS else float(text)


def _refuse(text: str) -> NoReturn:
    shown = text if len(text) <= 20 else text[:20] + "..."
    raise ValueError(f"a number must be finite and below 1e308, got {shown}")
