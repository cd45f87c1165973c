"""Reading pictures: every form becomes uint8 RGB, everything hostile one sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from paligemma.errors import ImageError
from paligemma.processing import image as image_module
from paligemma.processing.image import load_as_original, load_frames, load_image

RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def replicated(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def png_header(width: int, height: int) -> bytes:
    """A grey PNG that announces its size and holds one row of nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 64)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_path_bytes_pillow_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB)
    picture.save(tmp_path / "a.png")
    sources: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        encoded(picture),
        picture,
        RGB,
    ]
    for source in sources:
        loaded = load_image(source)
        assert loaded.dtype == np.uint8
        assert np.array_equal(loaded, RGB)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats_are_read(kind: str) -> None:
    flat = np.full((5, 7, 3), 40, dtype=np.uint8)
    assert np.array_equal(load_image(encoded(Image.fromarray(flat), kind)), flat)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_read(kind: str) -> None:
    flat = np.full((16, 16, 3), 100, dtype=np.uint8)
    loaded = load_image(encoded(Image.fromarray(flat), kind))
    assert np.abs(loaded.astype(int) - 100).max() <= 3


def test_readers_of_rarer_formats_are_imported_only_for_them(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "a.webp"]
    for path in paths:
        Image.fromarray(RGB).save(path, lossless=True)
    script = (
        "import sys\n"
        "from paligemma.processing.image import load_image\n"
        "for path in sys.argv[1:]:\n"
        "    print(load_image(path).sum(), 'PIL.WebPImagePlugin' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(RGB.sum()), "False", str(RGB.sum()), "True"]


def test_grey_is_replicated() -> None:
    assert np.array_equal(load_image(encoded(Image.fromarray(GREY))), replicated(GREY))


def test_sixteen_bits_keep_their_high_byte() -> None:
    levels = GREY.astype(np.uint16) * 256 + 255
    assert np.array_equal(load_image(encoded(Image.fromarray(levels))), replicated(GREY))
    assert np.array_equal(load_image(encoded(Image.fromarray(levels), "TIFF")), replicated(GREY))
    wide = Image.fromarray(levels.astype(np.int32))
    assert wide.mode == "I"
    assert np.array_equal(load_image(wide), replicated(GREY))


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    body = b"".join(
        b"\0" + bytes([value for sample in row.ravel() for value in (sample, 77)]) for row in RGB
    )
    header = struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in chunks
    )
    assert np.array_equal(load_image(data), RGB)


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    loaded = load_image(encoded(cmyk, "JPEG"))
    assert np.abs(loaded.astype(int) - [255, 0, 0]).max() <= 4


def test_one_bit_becomes_black_and_white() -> None:
    bits = np.array([[True, False], [False, True]])
    expected = replicated(np.where(bits, 255, 0).astype(np.uint8))
    assert np.array_equal(load_image(encoded(Image.fromarray(bits))), expected)
    assert np.array_equal(load_image(bits), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    stored = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, 1),
    }[orientation]
    assert np.array_equal(load_image(encoded(stored, exif=exif)), turned)
    assert np.array_equal(load_image(encoded(stored, exif=exif), upright=False), np.asarray(stored))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_lies_as_it_is_stored_where_it_is_not_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    tiff, png = (encoded(Image.fromarray(RGB), kind, exif=exif) for kind in ("TIFF", "PNG"))
    assert np.array_equal(load_image(tiff, upright=False), RGB)
    assert np.array_equal(load_image(tiff), load_image(png))
    assert np.array_equal(load_as_original(tiff), RGB)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "metadata",
    [b"garbage", b"II*\0\xff\xff\xff\x7f", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0" + b"\xff" * 8],
)
def test_damaged_exif_leaves_the_pixels_alone(metadata: bytes) -> None:
    picture = Image.fromarray(RGB)
    damaged = encoded(picture, "JPEG", exif=b"Exif\0\0" + metadata)
    assert np.array_equal(load_image(damaged), load_image(encoded(picture, "JPEG")))


def test_an_orientation_that_cannot_be_applied_is_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(RGB), exif=exif)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.getexif", fail)
    assert np.array_equal(load_image(turned), RGB)
    assert "orientation ignored" in caplog.text


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, replicated(GREY)),
        (GREY[:, :, None], replicated(GREY)),
        (np.concatenate([RGB, np.full_like(RGB[:, :, :1], 255)], axis=2), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(np.float32) / 255, RGB),
        (RGB.astype(np.float64) / 255, RGB),
        (RGB[::-1, ::-1], RGB[::-1, ::-1]),
    ],
)
def test_arrays_of_every_kind_become_rgb(array: NDArray[Any], expected: NDArray[np.uint8]) -> None:
    loaded = load_image(array)
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous
    assert np.array_equal(loaded, expected)


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (RGB.astype(np.float32), r"must lie in \[0, 1\]"),
        (np.full((2, 2), np.nan), r"must lie in \[0, 1\], the array has nan"),
        (np.full((2, 2), -0.1), r"must lie in \[0, 1\]"),
        (RGB.astype(np.int64), "got int64"),
        (RGB.transpose(2, 0, 1), "channels last"),
        (RGB[None], "channels last"),
        (RGB[:, :, :2], "channels last"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
        (np.zeros((2, 2), dtype=object), "got object"),
    ],
)
def test_arrays_of_unclear_meaning_are_refused(array: NDArray[Any], rule: str) -> None:
    with pytest.raises(ImageError, match=rule):
        load_image(array)


def test_integers_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(ImageError, match=r"0\.\.65535.*70000"):
        load_image(Image.fromarray(np.full((2, 2), 70000, np.int32)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_gets_one_sentence(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut"
    data = encoded(Image.fromarray(noise), kind)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_prefix_of_a_file_is_an_error_or_a_picture() -> None:
    data = encoded(Image.fromarray(RGB), "PNG")
    for length in range(len(data)):
        try:
            assert load_image(data[:length]).shape == RGB.shape
        except ImageError:
            continue


def test_flipped_bytes_are_an_error_or_a_picture() -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        data = bytearray(encoded(Image.fromarray(RGB), kind))
        for _ in range(60):
            damaged = bytearray(data)
            for position in random.integers(0, len(data), 3):
                damaged[position] = random.integers(0, 256)
            try:
                assert load_image(bytes(damaged)).shape[2] == 3
            except ImageError:
                continue


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_raster_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="must be JPEG, PNG"):
        load_image(data)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000), (1, 64_000_001)])
def test_a_pixel_bomb_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    bomb = png_header(width, height)
    tracemalloc.start()
    with pytest.raises(ImageError, match="may have 64000000 pixels") as caught:
        load_image(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "shrink it" in str(caught.value)
    assert peak < 5_000_000


def test_the_pixel_bound_can_be_set_and_holds_for_arrays_and_pillow() -> None:
    for source in (RGB, Image.fromarray(RGB), encoded(Image.fromarray(RGB))):
        assert load_image(source, max_pixels=54).shape == (6, 9, 3)
        with pytest.raises(ImageError, match=r"may have 53 pixels, .* 9x6 = 54"):
            load_image(source, max_pixels=53)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000"])
def test_formats_that_need_more_memory_may_have_fewer_pixels(kind: str) -> None:
    data = encoded(Image.new("RGB", (20, 10)), kind)
    assert load_image(data, max_pixels=300).shape == (10, 20, 3)
    with pytest.raises(ImageError, match=r"20x10 = 200, each counted 1\.5 times"):
        load_image(data, max_pixels=299)


def test_missing_files_folders_and_strange_sources_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (tmp_path / "none.png", tmp_path, "", "/dev/zero", "a\0b"):
        with pytest.raises(ImageError):
            load_image(source)
    with pytest.raises(ImageError, match="got int"):
        load_image(3)  # type: ignore[arg-type]
    (tmp_path / "big.png").write_bytes(encoded(Image.fromarray(RGB)))
    monkeypatch.setattr(image_module, "MAX_ENCODED_BYTES", 20)
    with pytest.raises(ImageError, match="may have 20 bytes"):
        load_image(tmp_path / "big.png")


def test_threads_leave_the_filters_of_warnings_alone() -> None:
    data = encoded(Image.fromarray(RGB))
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [load_image(data) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 10), colour) for colour in COLOURS]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_any_frame_of_an_animation_is_read_and_the_choice_is_reported(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = animation(kind)
    assert load_image(data)[0, 0].tolist() == [255, 0, 0]
    assert "has 3 frames, and frame 0 is read" in caplog.text
    caplog.clear()
    for number, colour in enumerate(COLOURS):
        assert load_image(data, frame=number)[5, 5].tolist() == list(colour)
    frames = load_frames(data, [2, 0])
    assert [frame[5, 5].tolist() for frame in frames] == [[0, 0, 255], [255, 0, 0]]
    assert len(load_frames(data)) == 3
    assert load_as_original(data)[0, 0].tolist() == [255, 0, 0]
    assert not caplog.records
    for number in (3, -1):
        with pytest.raises(ImageError, match=rf"must lie in 0\.\.2, .*, got {number}"):
            load_image(data, frame=number)


def test_a_single_picture_has_one_frame_and_no_report(caplog: pytest.LogCaptureFixture) -> None:
    for source in (encoded(Image.fromarray(RGB)), Image.fromarray(RGB), RGB):
        assert np.array_equal(load_image(source, frame=0), RGB)
        with pytest.raises(ImageError, match=r"must lie in 0\.\.0"):
            load_image(source, frame=1)
    assert not caplog.records


def test_an_opened_animation_stays_where_it_is() -> None:
    opened = Image.open(io.BytesIO(animation("TIFF")))
    opened.seek(1)
    assert load_image(opened)[0, 0].tolist() == [0, 255, 0]
    assert load_image(opened, frame=2)[0, 0].tolist() == [0, 0, 255]
    assert opened.tell() == 1


def test_frames_read_at_once_share_the_bound_of_pixels() -> None:
    with pytest.raises(ImageError, match="together 599 pixels"):
        load_frames(animation("GIF"), max_pixels=599)
    assert len(load_frames(animation("GIF"), max_pixels=600)) == 3
    with pytest.raises(ImageError, match="got 0"):
        load_frames(RGB, [])
