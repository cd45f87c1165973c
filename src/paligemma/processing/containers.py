"""What an encoded picture will ask of a decoder, read from its structure before decoding.

Headers lie: an icon states 16x16 and holds a PNG of 12000x12000, a small JPEG has hundreds of
passes over all its pixels. Each function here walks one format's structure as far as its decoder
will, adds up what that costs, and stops where the structure is damaged (the decoder reports that)
or the cost passes the bound. Nothing here judges; the bounds are in `processing.image`.

Costs outside the pixels are counted in steps. One step is about a microsecond of the decoder.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from paligemma.processing import pnm

_STEPS_OF_PART = 16  # a chunk, segment, tag, or entry, each read by Python
_STEPS_OF_COMMENT = 256  # a block of a GIF comment, which Pillow appends by copying
_STEPS_OF_INFLATING = 8192  # a compressed chunk of a PNG, which may hold a megabyte
_STEPS_OF_EXIF = 16384  # a segment of a JPEG, which Pillow joins by copying, and reads whole
_SAMPLES_OF_STEP = 140  # of a JPEG 2000, in a step of two microseconds
_JPEG2000_BYTES_OF_STEP = 14
_INFLATED = (b"iCCP", b"zTXt", b"iTXt")
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # headings that state the size
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_CODESTREAM = b"\xff\x4f\xff\x51"  # start of one of JPEG 2000
_SIZ = re.compile(_CODESTREAM)
# Passes over the pixels that a run-length BMP costs, because Pillow decodes it in Python.
_RUN_LENGTH_PASSES = 512
# Passes that numbers written as text cost.
_TEXT_PASSES = 128

# Bytes of a value of TIFF's types, of BigTIFF's 16 to 18 too; values of more than one byte become
# Python numbers.
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TIFF_SIZES |= {16: 8, 17: 8, 18: 8}
_TIFF_LINKS = (34665, 34853, 40965)  # Exif, GPS and interoperability directories
_TILE_WIDTH, _TILE_LENGTH = 322, 323


@dataclass(kw_only=True)
class Cost:
    """What decoding asks for.

    Attributes:
        max_steps: bound after which a walk stops.
        width, height: the largest picture inside, whatever the heading states; 0 if not found.
        num_passes: how often all pixels are visited.
        num_steps: work outside the pixels.
        num_bytes: metadata that is copied, which may be the same bytes over and over.
        num_frames: pages or frames of an animation, where this walk counts them.
        significant_bits: bits of a sample that a PNG states as meaningful.
    """

    max_steps: int
    width: int = 0
    height: int = 0
    num_passes: int = 1
    num_steps: int = 0
    num_bytes: int = 0
    num_frames: int | None = None
    significant_bits: int | None = None

    def see(self, width: int, height: int) -> None:
        """Keep the largest picture."""
        if abs(width * height) > self.width * self.height:
            self.width, self.height = abs(width), abs(height)

    def step(self, count: int = _STEPS_OF_PART) -> bool:
        """Count steps; False once they are too many."""
        self.num_steps += count
        return self.num_steps <= self.max_steps


def cost_of(data: bytes, max_steps: int) -> Cost:
    """Walk the structure of an encoded picture; formats without hidden costs are not walked."""
    cost = Cost(max_steps=max_steps)
    for magic, walk in _WALKS:
        if data.startswith(magic):
            # Ends and offsets beyond the data are left to the decoder.
            with contextlib.suppress(struct.error, IndexError, OverflowError):
                walk(data, cost)
            break
    return cost


def _walk_jpeg(data: bytes, cost: Cost, at: int = 2) -> None:
    """Segments until the first scan, then the marks of all scans, those of a thumbnail too."""
    while found := _JPEG_MARKER.search(data, at, at + cost.max_steps + 2):
        if not cost.step(found.start() - at + _STEPS_OF_PART):  # filling is read byte by byte
            return
        marker, at = data[found.start() + 1], found.end()
        if marker in (0x01, 0xD8):
            continue
        if marker == 0xD9:  # end of the image
            return
        if marker == 0xDA:
            cost.num_passes = data.count(b"\xff\xda", found.start())
            return
        if marker in _JPEG_FRAMES:
            cost.see(*struct.unpack_from(">HH", data, at + 3))
        if marker == 0xE1 and data.startswith(b"Exif", at + 2):
            cost.step(_STEPS_OF_EXIF)
        at += struct.unpack_from(">H", data, at)[0]
    if len(data) - at > cost.max_steps:
        cost.step(len(data) - at)


def _walk_png(data: bytes, cost: Cost, at: int = 8) -> None:
    while cost.step():
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            cost.see(*struct.unpack_from(">II", data, at + 8))
        elif kind == b"sBIT" and length:
            cost.significant_bits = max(data[at + 8 : at + 8 + min(length, 3)])
        elif kind in _INFLATED:
            cost.step(_STEPS_OF_INFLATING)
        elif kind == b"IEND":
            break
        at += 12 + length


def _walk_gif(data: bytes, cost: Cost) -> None:
    cost.num_frames = 0
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    cost.see(width, height)
    at = 13 + _gif_palette(flags)
    while cost.step(1):
        kind = data[at]
        at += 1
        if kind == 0x3B:
            break
        if kind == 0x21:
            is_comment = data[at] == 0xFE
            at = _skip_blocks(data, at + 1, cost, _STEPS_OF_COMMENT if is_comment else 1)
        elif kind == 0x2C:
            cost.num_frames += 1
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, at)
            width, height = max(width, left + columns), max(height, top + rows)
            cost.see(width, height)
            cost.step()
            at = _skip_blocks(data, at + 10 + _gif_palette(flags), cost, 1)


def _gif_palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, cost: Cost, steps: int) -> int:
    while (length := data[at]) and cost.step(steps):
        at += length + 1
    return at + 1


def _walk_tiff(data: bytes, cost: Cost) -> None:
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    count_as, entry_as, at_as = ("Q", "HHQQ", "Q") if is_big else ("H", "HHII", "I")
    count_as, entry_as, at_as = order + count_as, order + entry_as, order + at_as
    entry_size = struct.calcsize(entry_as)
    next_page = struct.unpack_from(at_as, data, 8 if is_big else 4)[0]
    cost.num_frames = 0
    seen = set()
    while next_page and next_page not in seen:
        cost.num_frames += 1
        pending, is_page = [next_page], True
        while pending:
            at = pending.pop()
            if at in seen:
                continue
            seen.add(at)
            num_entries = struct.unpack_from(count_as, data, at)[0]
            at += struct.calcsize(count_as)
            tile: dict[int, int] = {}
            for _ in range(num_entries):
                tag, kind, count, value = struct.unpack_from(entry_as, data, at)
                at += entry_size
                size = _TIFF_SIZES.get(kind, 0)
                if not cost.step(_STEPS_OF_PART + (count if size > 1 else 0)):
                    return
                if value + count * size <= len(data):  # others are not read
                    cost.num_bytes += count * size
                if order == ">" and kind == 3 and not is_big:
                    value >>= 16  # a short stands in the first half
                if tag in _TIFF_LINKS:
                    pending.append(value)
                if tag in (_TILE_WIDTH, _TILE_LENGTH):
                    tile[tag] = value & (0xFFFF if kind == 3 else 0xFFFFFFFF)
            cost.see(tile.get(_TILE_WIDTH, 0), tile.get(_TILE_LENGTH, 0))
            if is_page:
                next_page, is_page = struct.unpack_from(at_as, data, at)[0], False


def _walk_ico(data: bytes, cost: Cost) -> None:
    for number in range(struct.unpack_from("<H", data, 4)[0]):
        at = struct.unpack_from("<I", data, 6 + 16 * number + 12)[0]
        if not cost.step():
            break
        if data[at : at + 8] == _PNG_MAGIC:
            _walk_png(data, cost, at + 8)
        else:
            _see_bitmap(data, cost, at, rows_of_height=2)  # a mask stands below the picture


def _walk_bmp(data: bytes, cost: Cost) -> None:
    _see_bitmap(data, cost, 14)


def _see_bitmap(data: bytes, cost: Cost, at: int = 0, *, rows_of_height: int = 1) -> None:
    header_size = struct.unpack_from("<I", data, at)[0]
    if header_size < 16:
        return
    width, height = struct.unpack_from("<ii", data, at + 4)
    cost.see(width, height // rows_of_height)
    if struct.unpack_from("<I", data, at + 16)[0] in (1, 2):
        cost.num_passes = _RUN_LENGTH_PASSES
        cost.see(width, 255)  # one jump may claim as many rows


def _walk_jpeg2000(data: bytes, cost: Cost) -> None:
    """Every codestream, as a box before the picture's own may hold another."""
    for found in _SIZ.finditer(data):
        if not cost.step():
            return
        with contextlib.suppress(struct.error, IndexError):
            _see_codestream(data, cost, found.start())


def _see_codestream(data: bytes, cost: Cost, at: int) -> None:
    """Sizes, then the marks of the main heading and of every part of a tile."""
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", data, at + 8)
    num_components = struct.unpack_from(">H", data, at + 40)[0]
    width, height = max(right - left, 0), max(bottom - top, 0)
    cost.see(width, height)
    num_tiles = -(-width // max(tile_width, 1)) * -(-height // max(tile_height, 1))
    cost.step(
        width * height * num_components // _SAMPLES_OF_STEP
        + (len(data) - at) // _JPEG2000_BYTES_OF_STEP
        + num_tiles * _STEPS_OF_PART
    )
    part, is_ended = at, False
    num_blocks = 0
    at += 2
    while not is_ended and cost.step():
        marker, length = struct.unpack_from(">HH", data, at)
        if marker in (0xFF52, 0xFF53):  # how blocks are coded, of all components or of one
            skipped = 9 if marker == 0xFF52 else 6 + (num_components > 256)
            style = data[at + 4 if marker == 0xFF52 else at + skipped - 1]
            blocks = _num_blocks(data, at + skipped, bool(style & 1), width, height)
            cost.step(max(blocks * num_components - num_blocks, 0))
            num_blocks = max(num_blocks, blocks * num_components)
        if marker == 0xFF90:  # a part of a tile
            part = at
            size = struct.unpack_from(">I", data, at + 6)[0]
            is_ended = size == 0
        if marker == 0xFF93:  # its data
            if part + size <= at:
                return
            at = part + size
        else:
            at += 2 + length


def _num_blocks(data: bytes, at: int, has_precincts: bool, width: int, height: int) -> int:
    """Code blocks of one component: OpenJPEG keeps 400 bytes for each, whatever it holds."""
    num_levels, *exponents = data[at : at + 3]
    count = 0
    for level in range(min(num_levels, 32) + 1):  # from the smallest resolution
        x, y = (exponent + 2 for exponent in exponents)
        if has_precincts:
            precinct, is_halved = data[at + 5 + level], level > 0
            x = min(x, max((precinct & 15) - is_halved, 0))
            y = min(y, max((precinct >> 4) - is_halved, 0))
        shift = num_levels - level
        count += ((width >> shift) * (height >> shift)) >> (x + y)
    return count


def _walk_pnm(data: bytes, cost: Cost) -> None:
    if found := pnm.heading(data):
        cost.see(int(found[2]), int(found[3]))
        if found[1] in b"123":
            cost.num_passes = _TEXT_PASSES
            cost.step(data.count(b"#"))


_WALKS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes, Cost], None]], ...] = (
    (b"\xff\xd8\xff", _walk_jpeg),
    (_PNG_MAGIC, _walk_png),
    ((b"GIF87a", b"GIF89a"), _walk_gif),
    ((b"II", b"MM"), _walk_tiff),
    (b"\0\0\1\0", _walk_ico),
    (b"BM", _walk_bmp),
    (b"P", _walk_pnm),
    ((b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"), _see_bitmap),
    ((_CODESTREAM, b"\0\0\0\x0cjP  \r\n\x87\n"), _walk_jpeg2000),
)
