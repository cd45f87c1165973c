"""What becomes RGB: transparency of every kind, and levels of more than 8 bits by their range."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from paligemma.errors import ConfigError, ImageError
from paligemma.processing.image import load_as_original, load_image

INK, WHITE = [10, 20, 30], [255, 255, 255]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(samples: NDArray[Any], colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits a sample."""
    rows = samples.reshape(len(samples), -1)
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", samples.shape[1], len(samples), 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )


def tiff(samples: NDArray[Any], *tags: tuple[int, int, int], photometric: int = 2) -> bytes:
    """An uncompressed TIFF of 16 bits a sample, of extra short tags (number, type, value)."""
    body = samples.astype("<u2").tobytes()
    channels = samples.shape[2] if samples.ndim == 3 else 1
    depths = struct.pack(f"<{channels}H", *[16] * channels)
    entries = [
        (256, 3, 1, samples.shape[1]),
        (257, 3, 1, samples.shape[0]),
        (258, 3, channels, 16 if channels == 1 else 8 + len(body)),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 3, 1, samples.shape[0]),
        (279, 4, 1, len(body)),
        *((number, kind, 1, value) for number, kind, value in tags),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", *entry) for entry in sorted(entries)
    )
    at = 8 + len(body) + len(depths)
    return struct.pack("<2sHI", b"II", 42, at) + body + depths + directory + bytes(4)


def transparent_pictures() -> dict[str, Any]:
    """Two pixels of one colour, the left one wholly transparent, in every form that has it."""
    rgba = Image.new("RGBA", (2, 1), (*INK, 255))
    rgba.putpixel((0, 0), (*INK, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette(INK + INK)
    palette.putdata([0, 1])
    return {
        "RGBA": encoded(rgba),
        "Pillow": rgba,
        "array": np.asarray(rgba),
        "WebP": encoded(rgba, "WEBP", lossless=True, exact=True),
        "TIFF": encoded(rgba, "TIFF"),
        "TGA": encoded(rgba, "TGA"),
        "palette": encoded(palette, transparency=0),
        "GIF": encoded(palette, "GIF", transparency=0),
        "palette with alphas": encoded(palette, transparency=bytes([0, 255])),
        "palette and alpha": rgba.convert("RGBA").convert("PA"),
        "deep RGBA": png(np.asarray(rgba).astype(int) * 257, 6),
    }


@pytest.mark.parametrize("form", transparent_pictures())
def test_transparent_parts_are_laid_on_white_and_reported(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = transparent_pictures()[form]
    assert load_image(source).tolist() == [[WHITE, INK]]
    assert "transparent in places, which are laid on #ffffff" in caplog.text
    assert load_image(source, background="#00ff00").tolist() == [[[0, 255, 0], INK]]


@pytest.mark.parametrize("form", ["RGBA", "Pillow", "array", "WebP", "TIFF", "palette", "GIF"])
def test_the_original_drops_transparency_and_keeps_the_colours_under_it(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = transparent_pictures()[form]
    assert load_image(source, background="none").tolist() == [[INK, INK]]
    assert load_as_original(source).tolist() == [[INK, INK]]
    assert not caplog.records


def test_grey_with_alpha_and_a_transparent_level_are_laid_on_white() -> None:
    grey = Image.new("LA", (2, 1), (40, 255))
    grey.putpixel((0, 0), (40, 0))
    assert load_image(encoded(grey)).tolist() == [[WHITE, [40, 40, 40]]]
    assert load_image(encoded(grey), background="none").tolist() == [[[40, 40, 40]] * 2]
    assert load_image(grey.convert("La")).tolist() == [[WHITE, [40, 40, 40]]]
    level = Image.fromarray(np.array([[7, 40]], np.uint8))
    assert load_image(encoded(level, transparency=7)).tolist() == [[WHITE, [40, 40, 40]]]
    deep = png(np.array([[7 * 257, 200 * 257]]), 0, (b"tRNS", struct.pack(">H", 7 * 257)))
    assert load_image(deep).tolist() == [[WHITE, [200, 200, 200]]]


def test_half_transparent_colours_are_mixed() -> None:
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 51))
    assert load_image(half).tolist() == [[[204, 224, 244]]]
    premultiplied = half.convert("RGBa")
    assert np.abs(load_image(premultiplied).astype(int) - [204, 224, 244]).max() <= 2


def test_a_picture_with_an_alpha_that_hides_nothing_stays_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    opaque = Image.fromarray(rgb).convert("RGBA")
    assert np.array_equal(load_image(encoded(opaque)), rgb)
    assert not caplog.records


def test_large_pictures_are_converted_alike_in_bands() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (1500, 900, 4), dtype=np.uint8)
    alpha = rgba[..., 3:].astype(int)
    expected = np.rint((rgba[..., :3] * alpha + 255 * (255 - alpha)) / 255)
    assert np.abs(load_image(Image.fromarray(rgba)) - expected).max() <= 1


@pytest.mark.parametrize("name", ["blurple", "", "#12", 7, None])
def test_a_background_that_is_no_colour_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="a background is a colour"):
        load_image(np.zeros((2, 2), np.uint8), background=name)


LEVELS = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_deep_levels_that_end_early_are_scaled_by_their_depth_and_reported(
    bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    grey = (LEVELS * ((1 << bits) - 1) // 8).astype(np.uint16)
    colours = np.stack([grey, grey // 2, grey], axis=2)
    expected = np.stack([LEVELS * 255 // 8] * 3, axis=2)
    half = np.stack([expected[..., 0], expected[..., 0] // 2, expected[..., 0]], axis=2)
    for source, truth in (
        (grey, expected),
        (Image.fromarray(grey), expected),
        (Image.fromarray(grey.astype(np.int32)), expected),
        (encoded(Image.fromarray(grey)), expected),
        (encoded(Image.fromarray(grey), "TIFF"), expected),
        (encoded(Image.fromarray(grey), "TIFF", compression="tiff_deflate"), expected),
        (colours, half),
        (png(colours, 2), half),
        (tiff(colours), half),
    ):
        caplog.clear()
        loaded = load_image(source).astype(int)
        assert np.abs(loaded - truth).max() <= 1
        assert f"({bits} bits)" in caplog.text
        if bits < 14:
            assert load_as_original(source).max() < 16


def test_levels_that_fill_sixteen_bits_keep_their_high_byte(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grey = (LEVELS * 65535 // 8).astype(np.uint16)
    for source in (grey, encoded(Image.fromarray(grey)), tiff(grey, photometric=1)):
        assert load_image(source)[..., 0].tolist() == (grey >> 8).tolist()
    assert not caplog.records


def test_the_range_that_a_file_states_comes_before_any_guess(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dark = LEVELS.astype(np.uint16) * 10  # at most 80
    stated = png(dark, 0, (b"sBIT", bytes([10])))
    assert load_image(stated)[..., 0].tolist() == (dark >> 2).tolist()
    deep = png(np.stack([dark] * 3, axis=2), 2, (b"sBIT", bytes([10, 10, 10])))
    assert load_image(deep)[..., 0].tolist() == (dark >> 2).tolist()
    largest = tiff(dark, (281, 3, 160), photometric=1)
    assert load_image(largest)[..., 0].tolist() == np.rint(dark * 255 / 160 + 0.01).tolist()
    full = tiff(dark, (281, 3, 65535), photometric=1)
    assert load_image(full).max() == 0
    assert not caplog.records


def test_a_deep_negative_is_read_as_a_positive() -> None:
    grey = (LEVELS * 65535 // 8).astype(np.uint16)
    assert load_image(tiff(grey, photometric=0))[..., 0].tolist() == (255 - (grey >> 8)).tolist()


def test_floats_outside_their_range_are_refused_in_files_too() -> None:
    grey = Image.fromarray((LEVELS / 8).astype(np.float32))
    assert load_image(encoded(grey, "TIFF")).max() == 255
    with pytest.raises(ImageError, match=r"must lie in \[0, 1\]"):
        load_image(encoded(Image.fromarray(LEVELS.astype(np.float32)), "TIFF"))


@pytest.mark.parametrize("largest", [1, 255, 1023, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_portable_maps_are_scaled_by_the_largest_level_that_they_state(
    kind: bytes, largest: int
) -> None:
    levels = LEVELS * largest // 8
    if kind in (b"P3", b"P6"):
        levels = np.stack([levels] * 3, axis=2)
    if kind in (b"P2", b"P3"):
        body = b"# note\n".join(b"%d " % level for level in levels.ravel())
    else:
        body = levels.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    data = kind + b"\n# made by hand\n3 3\n#again\n%d\n" % largest + body
    truth = np.round(LEVELS * largest // 8 * 255 / largest)
    assert np.abs(load_image(data)[..., 0] - truth).max() <= 1
    with pytest.raises(ImageError, match="numbers are"):
        load_image(data[:-9])


def test_portable_bitmaps_are_read() -> None:
    truth = [[255, 0, 255], [0, 0, 255]]
    assert load_image(b"P1 3 2 0 1 0\n# half\n110")[..., 0].tolist() == truth
    assert load_image(b"P4 3 2\n" + bytes([0b01000000, 0b11000000]))[..., 0].tolist() == truth
