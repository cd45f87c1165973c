"""COCO's run-length encoding of masks, in its compressed text form.

Runs go down the columns and begin with background. From the fourth on, a run is stored as the
difference to the run two before; numbers are little-endian groups of five bits, each with a bit
for whether more follow, as characters from "0" on (pycocotools `common/maskApi.c`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from paligemma.errors import DataError

MAX_MASK_PIXELS = 2**28


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask.

    Args:
        mask: bool[H, W].

    Returns:
        `{"size": [H, W], "counts": text}`, as pycocotools reads it.
    """
    height, width = mask.shape
    flat = np.asarray(mask, bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    if not flat.size:
        runs = []
    return {"size": [height, width], "counts": _to_text(runs)}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The mask of run lengths: bool[H, W].

    Args:
        rle: `{"size": [H, W], "counts": text or bytes or list of runs}`.

    Raises:
        DataError: size or counts are malformed, too large, or do not fill the mask exactly.
    """
    try:
        height, width = (int(n) for n in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        runs = _from_text(counts) if isinstance(counts, str) else [int(n) for n in counts]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            'run lengths must be {"size": [height, width], "counts": text}, got '
            f"{str(rle)[:80]}; take them from COCO or encode_rle"
        ) from error
    if height < 0 or width < 0 or height * width > MAX_MASK_PIXELS:
        raise DataError(
            f"a mask may have at most {MAX_MASK_PIXELS} pixels, got {height}x{width}; correct the "
            "size"
        )
    if any(n < 0 for n in runs) or sum(runs) != height * width:
        raise DataError(
            f"run lengths must be at least 0 and sum to {height}x{width} = {height * width}, got "
            f"{len(runs)} runs with a sum of {sum(runs)}; the text is damaged, encode the mask anew"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _to_text(runs: list[int]) -> str:
    characters = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            group = value & 31
            value >>= 5
            # Stop once the rest is only the sign, which the group's top bit already holds.
            more = value != (-1 if group & 16 else 0)
            characters.append(chr(48 + (group | 32 if more else group)))
    return "".join(characters)


def _from_text(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("not a run length")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the last run is cut off")
    return runs
