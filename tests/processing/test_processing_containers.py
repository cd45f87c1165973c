"""What hides behind a heading is refused in one sentence, at once, and without memory for it."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.errors import ImageError
from paligemma.processing.image import load_image

BOUND_MB = 64  # above the file itself
BOUND_S = 1.0
PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def png(width: int, height: int, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * min((width + 1) * height, 1000))
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return PNG + b"".join(parts)


def ico(body: bytes) -> bytes:
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(body), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + body


def bitmap(width: int, height: int, compression: int = 0) -> bytes:
    return struct.pack("<IiiHHIIIIII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 0)


def bmp(header: bytes, body: bytes) -> bytes:
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(1024) + body


def jpeg(*, scans: int = 1, head: bytes = b"") -> bytes:
    side = 16 if head else 4000
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:2] + head + data[2:-2] + last * (scans - 1) + b"\xff\xd9"


def gif(*blocks: bytes, size: int = 4) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, size, size, 0) + b"\2\2\4\1\0"
    screen = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    return screen + b"".join(blocks) + frame + b";"


def tiff(*tags: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    sound = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (262, 3, 1, 1)]
    entries = sorted([*sound, *tags])
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4) + tail


def jpeg2000(side: int, *, in_tile: bytes = b"", **options: object) -> bytes:
    """One that states another size of picture and tile, with marks in the heading of its tile."""
    data = bytearray(encoded(Image.new("L", (16, 16)), "JPEG2000", **options))
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = data[at + 24 : at + 32] = struct.pack(">II", side, side)
    at = data.index(b"\xff\x90")
    size = struct.unpack_from(">I", data, at + 6)[0] + len(in_tile)
    data[at + 6 : at + 10] = struct.pack(">I", size)
    data[at + 12 : at + 12] = in_tile
    return bytes(data)


TINY_BLOCKS = b"\xff\x52\0\x0c\0\0\0\1\0\0\0\0\0\0"  # of 4x4, by the coding of a tile
TINY_PRECINCTS = b"\xff\x52\0\x0d\1\0\0\1\0\0\4\4\0\0\x11"  # which divide blocks of 64x64


MEGABYTE = zlib.compress(bytes(1_000_000))
EXIF = b"\xff\xe1\xff\xffExif\0\0II*\0" + bytes(65523)
PAGE = tiff((273, 4, 1, 8), (279, 4, 1, 256))[8:-4]

HOSTILE = {
    "an icon with a PNG of 144 megapixels": (lambda: ico(png(12000, 12000)), "12000x12000"),
    "an icon with a bitmap of 200 megapixels": (lambda: ico(bitmap(20000, 20000)), "20000x10000"),
    "a JPEG of 400 scans": (lambda: jpeg(scans=400), "passes over 4000x4000"),
    "a JPEG with filling": (lambda: jpeg(head=b"\xff" * 9_000_000), "steps"),
    "a JPEG with junk": (lambda: jpeg(head=b"\xff\0" * 9_000_000), "steps"),
    "a JPEG with much EXIF": (lambda: jpeg(head=EXIF * 100), "steps"),
    "a PNG with many profiles": (
        lambda: png(8, 8, chunk(b"iCCP", b"x\0\0" + MEGABYTE) * 3000),
        "steps",
    ),
    "a PNG with many texts": (lambda: png(8, 8, chunk(b"tEXt", b"x\0y") * 500_000), "steps"),
    "a GIF with a long comment": (
        lambda: gif(b"\x21\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0"),
        "steps",
    ),
    "a GIF in tiny blocks": (lambda: gif(b"\x21\x01" + b"\1c" * 3_000_000 + b"\0"), "steps"),
    "a GIF with junk": (lambda: gif(b"x" * 3_000_000), "steps"),
    "a GIF larger than its screen": (lambda: gif(size=12000), "12000x12000"),
    "a TIFF whose tags share their bytes": (
        lambda: tiff(*((1000 + tag, 7, 5_000_000, 8) for tag in range(99)), tail=bytes(5_000_000)),
        "the metadata of",
    ),
    "a TIFF of ten million strips": (
        lambda: tiff((273, 4, 10**7, 8), (279, 4, 10**7, 8), tail=bytes(4 * 10**7)),
        "steps",
    ),
    "a TIFF with a large tile": (
        lambda: tiff((322, 4, 1, 40000), (323, 4, 1, 40000), (324, 4, 1, 8), (325, 4, 1, 9)),
        "40000x40000",
    ),
    "a TIFF of many pages": (
        lambda: (
            b"II*\0\x08\0\0\0"
            + b"".join(
                PAGE + struct.pack("<I", 8 + (number + 1) * (len(PAGE) + 4))
                for number in range(20_000)
            )
        ),
        "steps",
    ),
    "a JPEG 2000 that is larger inside": (lambda: jpeg2000(12000), "12000x12000"),
    "a JPEG 2000 of tiny blocks": (lambda: jpeg2000(5000, codeblock_size=(4, 4)), "steps"),
    "a JPEG 2000 with tiny blocks in a tile": (
        lambda: jpeg2000(5000, in_tile=TINY_BLOCKS),
        "steps",
    ),
    "a JPEG 2000 of tiny precincts": (lambda: jpeg2000(5000, in_tile=TINY_PRECINCTS), "steps"),
    "a JPEG 2000 of tiny blocks behind another": (
        lambda: (
            jpeg2000(16)[:85]
            + struct.pack(">I4s", 200, b"free")
            + jpeg2000(16)[85:].ljust(192, b"\0")[:192]
            + jpeg2000(5000, codeblock_size=(4, 4))[85:]
        ),
        "steps",
    ),
    "a JPEG 2000 of much code": (lambda: jpeg2000(16) + bytes(16 << 20), "steps"),
    "a run-length bitmap with jumps": (
        lambda: bmp(bitmap(60_000_000, 1, 1), b"\0\2\xff\xff" * 9),
        "60000000x255",
    ),
    "a run-length bitmap of 64 megapixels": (
        lambda: bmp(bitmap(8000, 8000, 1), b"\1\1" * 10**6),
        "512 passes",
    ),
    "a plain PPM of 16 megapixels": (
        lambda: b"P3 4000 4000 255\n" + b"1 " * 10**6,
        "128 passes",
    ),
    "a PPM of comments": (lambda: b"P3 8 8 255\n" + b"#\n" * 3_000_000 + b"1 " * 192, "steps"),
    "a PPM with a long heading": (lambda: b"P6\n#" + b"x" * 10**7 + b"\n8 8 255\n", "heading"),
}

MEASURE = """
import resource, sys, time
from pathlib import Path
from PIL import Image
from paligemma.errors import ImageError
from paligemma.processing.image import load_image
Image.init()
for path in sys.argv[1:]:
    size_kb = Path(path).stat().st_size / 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        said = str(load_image(path).shape)
    except ImageError as error:
        said = "refused: " + str(error)
    used_s = time.process_time() - start
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - size_kb
    print(f"{used_s:.3f}\\t{peak_kb / 1024:.0f}\\t{said}")
"""


def test_what_hides_behind_a_heading_is_refused_within_a_second_and_64_megabytes(
    tmp_path: Path,
) -> None:
    paths = []
    for number, (make, _) in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(HOSTILE)
    for line, (what, (_, rule)) in zip(lines, HOSTILE.items(), strict=True):
        used_s, peak_mb, said = line.split("\t")
        assert said.startswith("refused: "), what
        assert rule in said, what
        assert float(used_s) < BOUND_S, what
        assert float(peak_mb) < BOUND_MB, what


@pytest.mark.parametrize("kind", ["EPS", "PDF", "DDS", "ICNS", "SGI", "MSP"])
def test_formats_outside_the_list_are_no_pictures_even_where_pillow_reads_them(kind: str) -> None:
    image = Image.new("1" if kind == "MSP" else "RGB", (32, 32))
    with pytest.raises(ImageError, match="cannot be recognised"):
        load_image(encoded(image, kind))


def test_pages_that_form_a_circle_are_counted_once() -> None:
    page = PAGE + struct.pack("<I", 8)
    assert load_image(b"II*\0\x08\0\0\0" + page + bytes(300)).shape == (16, 16, 3)


def test_sound_pictures_with_much_in_them_are_read() -> None:
    many = Image.new("RGB", (640, 480), "red")
    frames = [Image.new("RGB", (64, 48), (number, 0, 0)) for number in range(200)]
    for data in (
        encoded(many, "JPEG", progressive=True, exif=b"Exif\0\0" + bytes(60_000)),
        encoded(many, "PNG", icc_profile=bytes(500_000)),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"c" * 9000),
        encoded(many, "TIFF", compression="tiff_lzw", exif=Image.Exif()),
        encoded(many, "ICO", sizes=[(256, 256), (32, 32), (16, 16)]),
        encoded(many, "JPEG2000"),
    ):
        assert load_image(data, frame=0).ndim == 3
