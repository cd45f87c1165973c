"""Embedded handwriting, fonts and photographs, read once on first use (see data/SOURCES.md)."""

from functools import lru_cache
from importlib import resources
from io import BytesIO

import numpy as np
from PIL import Image, ImageFont

FONTS: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono-Bold",
)
PHOTOS: tuple[str, ...] = ("china", "flower")
# Height of capitals over the em of every DejaVu face (OS/2 table: 1493 / 2048).
CAP_HEIGHT_EM = 0.729
HELDOUT_EVERY = 5


def _read(name: str) -> bytes:
    return (resources.files("paligemma.scenes") / "data" / name).read_bytes()


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits: images uint8[1797, 8, 8] in 0..16 and labels uint8[1797]."""
    with np.load(BytesIO(_read("digits.npz")), allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


@lru_cache(maxsize=2)
def digit_indices(split: str) -> np.ndarray:
    """Indices int64[N] of the handwriting that a split shows; the splits are disjoint."""
    index = np.arange(len(digits()[1]))
    is_heldout = index % HELDOUT_EVERY == 0
    return index[is_heldout] if split == "heldout" else index[~is_heldout]


@lru_cache(maxsize=8)
def _font_bytes(name: str) -> bytes:
    return _read(f"{name}.ttf")


@lru_cache(maxsize=512)
def font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A face at an em size in pixels. Basic layout: the same glyph positions on every machine."""
    layout = ImageFont.Layout.BASIC
    return ImageFont.truetype(BytesIO(_font_bytes(name)), size_px, layout_engine=layout)


@lru_cache(maxsize=2)
def photo(name: str) -> Image.Image:
    """A background photograph, RGB, about 480 x 320 px."""
    return Image.open(BytesIO(_read(f"{name}.jpg"))).convert("RGB")
