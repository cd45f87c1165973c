"""Masks as Label Studio's brush has them: runs of RGBA values in a string of bits.

    32 bits: number of values | 5: bits of a value - 1 | 4 x 4: bits of a run's length - 1
    then for each run: 1 | 2: which of the four sizes | length - 1 | 8: value

Source: @thi.ng/rle-pack, which label_studio_converter/brush.py reads and writes.
"""

import numpy as np

_SIZES = (3, 4, 8, 16)


def brush_rle(mask: np.ndarray) -> list[int]:
    """The bytes of a mask bool[H, W], whose foreground is opaque."""
    flat = np.asarray(mask, bool).ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    runs = np.diff(np.concatenate([starts, [flat.size]]))
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, run in zip(starts.tolist(), runs.tolist(), strict=True):
        value = "1" * 8 if flat[start] else "0" * 8
        rest = 4 * run
        while rest:
            length = min(rest, 1 << _SIZES[-1])
            place = next(k for k, size in enumerate(_SIZES) if length <= 1 << size)
            bits.append(f"1{place:02b}{length - 1:0{_SIZES[place]}b}{value}")
            rest -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
