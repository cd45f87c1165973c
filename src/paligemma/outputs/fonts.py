"""Fonts of this system: which of them has a letter."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

# Read before the others, which come in the order of their names.
_KNOWN = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "NotoSansCJKsc-Regular.otf",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
    "Arial Unicode.ttf",
)
_SUFFIXES = (".ttf", ".otf", ".ttc")
# Cuts that are not upright and of usual weight.
_UNUSUAL = ("bold", "black", "italic", "oblique", "light", "thin", "mono", "condensed", "narrow")
_MAX_FILES, _MAX_TRIED = 20_000, 400
_NO_SUCH_CHARACTER = "\U0010fffe"


@lru_cache(maxsize=64)
def pillows_own(size_px: int) -> ImageFont.FreeTypeFont:
    """The font inside Pillow, which holds little more than ASCII."""
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=512)
def load(name: str, size_px: int) -> ImageFont.FreeTypeFont | None:
    """The font in a file, or of a name that the system knows; None where it is no such font."""
    try:
        return ImageFont.truetype(name, size_px)
    except (OSError, ValueError):
        return None


def installed(size_px: int) -> Iterator[ImageFont.FreeTypeFont]:
    """Fonts of this system, the usual ones first; at most 400."""
    for path in itertools.islice(_paths(_folders()), _MAX_TRIED):
        if (font := load(path, size_px)) is not None:
            yield font


@lru_cache(maxsize=1 << 14)
def has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Whether the font has a character, and not only its box for the unknown."""
    plain = _unshaped(font)
    return _shape(plain, character) != _shape(plain, _NO_SUCH_CHARACTER)


@lru_cache(maxsize=512)
def _unshaped(font: ImageFont.FreeTypeFont) -> ImageFont.FreeTypeFont:
    """The font without ligatures, which would add a circle to a mark that stands alone."""
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _shape(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _folders() -> tuple[str, ...]:
    """Where Linux, macOS or Windows keep fonts; the user's own first."""
    home = Path.home()
    if sys.platform == "win32":
        local, windows = os.environ.get("LOCALAPPDATA", ""), os.environ.get("WINDIR", "")
        return (
            os.path.join(local, "Microsoft", "Windows", "Fonts"),
            os.path.join(windows, "Fonts"),
        )
    if sys.platform == "darwin":
        return (str(home / "Library" / "Fonts"), "/Library/Fonts", "/System/Library/Fonts")
    own = os.environ.get("XDG_DATA_HOME") or str(home / ".local" / "share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    places = [os.path.join(place, "fonts") for place in (own, *shared.split(":"))]
    return (*places, str(home / ".fonts"))


@lru_cache(maxsize=4)
def _paths(folders: tuple[str, ...]) -> tuple[str, ...]:
    names = (
        os.path.join(place, name)
        for folder in folders
        for place, _, files in os.walk(folder)
        for name in files
        if name.lower().endswith(_SUFFIXES)
    )
    return tuple(sorted(itertools.islice(names, _MAX_FILES), key=_rank))


def _rank(path: str) -> tuple[int, bool, str]:
    name = os.path.basename(path)
    known = _KNOWN.index(name) if name in _KNOWN else len(_KNOWN)
    return known, any(word in name.lower() for word in _UNUSUAL), name
