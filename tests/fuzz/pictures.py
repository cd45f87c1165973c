"""Damaged and hostile pictures in twenty-two formats."""

from __future__ import annotations

import io
import random
from functools import cache
from typing import Any

import numpy as np
from fuzz.damage import BYTE_FAULTS, damaged_bytes
from PIL import Image, features

from paligemma.processing.image import load_as_original, load_frames, load_image

NAME = "pictures"
MAX_MB = 1024
MAX_PIXELS = 4_000_000


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:  # saving leaves its traces on them
        options["append_images"] = [one.copy() for one in options["append_images"]]
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def sound_pictures() -> dict[str, bytes]:
    """A small sound picture in every format."""
    noise = np.random.default_rng(0)
    rgb = Image.fromarray(noise.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    other = rgb.rotate(180)
    rgba = Image.merge("RGBA", (*rgb.split(), rgb.getchannel(0)))
    deep = Image.fromarray(noise.integers(0, 4096, (24, 32), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"save_all": True, "append_images": [other, rgb]}
    pictures = {
        "png": _encoded(rgb, "PNG", exif=exif),
        "png-alpha": _encoded(rgba, "PNG"),
        "png-deep": _encoded(deep, "PNG"),
        "apng": _encoded(rgb, "PNG", **more),
        "jpeg": _encoded(rgb, "JPEG", exif=exif),
        "jpeg-progressive": _encoded(rgb, "JPEG", progressive=True),
        "mpo": _encoded(rgb, "MPO", **more),
        "gif": _encoded(rgb, "GIF"),
        "gif-animated": _encoded(rgb, "GIF", comment=b"a comment", **more),
        "bmp": _encoded(rgb, "BMP"),
        "dib": _encoded(rgb, "DIB"),
        "tiff": _encoded(rgb, "TIFF", exif=exif),
        "tiff-pages": _encoded(rgb, "TIFF", compression="tiff_deflate", **more),
        "tiff-deep": _encoded(deep, "TIFF", compression="tiff_lzw"),
        "tiff-big": _encoded(rgb, "TIFF", big_tiff=True),
        "ico": _encoded(rgb.resize((32, 32)), "ICO", sizes=[(16, 16), (32, 32)]),
        "tga": _encoded(rgba, "TGA", compression="tga_rle"),
        "pcx": _encoded(rgb, "PCX"),
        "ppm": _encoded(rgb, "PPM"),
        "ppm-plain": b"P3 # plain\n2 2 255\n" + b"1 2 3 " * 4,
    }
    for feature, kinds in (
        ("webp", {"webp": {}, "webp-animated": {"lossless": True, **more}}),
        ("jpg_2000", {"jpeg2000": {}}),
        ("avif", {"avif": {"speed": 10}}),
    ):
        if features.check(feature):
            kind = {"jpg_2000": "JPEG2000"}.get(feature, feature.upper())
            pictures |= {name: _encoded(rgb, kind, **how) for name, how in kinds.items()}
    return pictures


def _splice(data: bytearray, rng: random.Random) -> None:
    other = rng.choice(list(sound_pictures().values()))
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


_FAULTS = (*BYTE_FAULTS, _splice)


def make(rng: random.Random) -> tuple[str, tuple[bytes, int]]:
    """A picture with one to three faults, and the way it is read."""
    name = rng.choice(list(sound_pictures()))
    what, data = damaged_bytes(sound_pictures()[name], rng, _FAULTS)
    return f"{name} with {what}", (data, rng.randrange(4))


def attempt(given: tuple[bytes, int]) -> None:
    """Read a picture in one of four ways."""
    data, way = given
    if way == 0:
        load_as_original(data, max_pixels=MAX_PIXELS)
    elif way == 1:
        load_frames(data, max_pixels=MAX_PIXELS)
    else:
        pixels = load_image(data, frame=None if way == 2 else 1, max_pixels=MAX_PIXELS)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
