"""Letters for pictures: a font that has them, and text cut and wrapped to a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageFont

from paligemma.errors import DataError

MAX_TEXT_CHARS = 4000

# Pillow's own font holds little more than ASCII; it finds these by name where they are installed.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "msyh.ttc",
)
_ELLIPSIS = "..."
_NO_SUCH_CHARACTER = "\U0010fffe"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Lettering:
    """One font at one size, with the characters it can draw."""

    font: _Font
    size_px: int

    @classmethod
    def for_texts(
        cls, texts: Iterable[str], *, size_px: int, font_path: str | None = None
    ) -> Lettering:
        """Pillow's font if it has every character, else the installed font that lacks the fewest.

        Raises:
            DataError: `font_path` is given and is not a font.
        """
        if font_path is not None:
            font = _load(font_path, size_px)
            if font is None:
                raise DataError(
                    f"font_path must name a TrueType or OpenType font, {font_path} is not one; "
                    "correct the path or leave it out"
                )
            return cls(font=font, size_px=size_px)
        best: _Font = ImageFont.load_default(size_px)
        wanted = {c for text in texts for c in one_line(text) if not c.isascii()}
        lacking = _num_lacking(best, wanted)
        for name in _SYSTEM_FONTS:
            if not lacking:
                break
            candidate = _load(name, size_px)
            if candidate is not None and (num := _num_lacking(candidate, wanted)) < lacking:
                best, lacking = candidate, num
        return cls(font=best, size_px=size_px)

    def width(self, text: str) -> float:
        """Pixels from the first letter to the end of the last."""
        return self.font.getlength(text)

    def spell(self, text: str) -> str:
        """One line of characters that the font has; accents are dropped, others become "?"."""
        return "".join(self._spell_character(c) for c in one_line(text))

    def fit(self, text: str, room: float) -> str:
        """The text in characters of the font; three dots cut what is wider than the room."""
        text = self.spell(text)
        if self.width(text) <= room:
            return text
        head = self._longest_head(text, room - self.width(_ELLIPSIS))
        return head.rstrip() + _ELLIPSIS if head else text[:1]

    def wrap(self, text: str, room: float, *, max_lines: int) -> list[str]:
        """The text in lines no wider than the room; three dots end the last where more follows.

        Words wider than the room are broken, which scripts without spaces need.
        """
        words = self.spell(text).split()
        lines: list[str] = []
        while words and len(lines) < max_lines:
            line = words.pop(0)
            if self.width(line) > room:
                head = self._longest_head(line, room) or line[0]
                words[:0] = [line[len(head) :]] if len(head) < len(line) else []
                line = head
            else:
                while words and self.width(f"{line} {words[0]}") <= room:
                    line += " " + words.pop(0)
            if words and len(lines) == max_lines - 1:
                line = self.fit(f"{line} {words[0]}", room)
            lines.append(line)
        return lines

    def _longest_head(self, text: str, room: float) -> str:
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle]) <= room:
                low = middle
            else:
                high = middle - 1
        return text[:low]

    def _spell_character(self, character: str) -> str:
        if character.isascii() or not _num_lacking(self.font, {character}):
            return character
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        return plain or "?"


def one_line(text: str) -> str:
    """The printable characters of a text, blanks as single spaces, at most 4,000 of them."""
    text = " ".join(text[:MAX_TEXT_CHARS].split())
    return "".join(c for c in text if c.isprintable())


@lru_cache(maxsize=64)
def _load(name: str, size_px: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size_px)
    except OSError:
        return None


def _num_lacking(font: _Font, characters: Iterable[str]) -> int:
    """How many characters the font would show as its box for the unknown."""
    unknown = _shape(font, _NO_SUCH_CHARACTER)
    return sum(_shape(font, c) == unknown for c in characters)


def _shape(font: _Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
