"""Letters for pictures: fonts that have them, and text cut and wrapped to a width."""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageDraw, ImageFont

from paligemma.errors import DataError
from paligemma.outputs.fonts import has, installed, load, pillows_own

logger = logging.getLogger(__name__)

MAX_TEXT_CHARS = 4000

_ELLIPSIS = "..."
_LATIN = "AZaz09.;"


@dataclass(frozen=True, kw_only=True)
class Lettering:
    """Fonts at one size: the first for most of the text, each other for what those before lack."""

    fonts: tuple[ImageFont.FreeTypeFont, ...]
    size_px: int

    @classmethod
    def for_texts(
        cls, texts: Iterable[str], *, size_px: int, font_path: str | None = None
    ) -> Lettering:
        """Pillow's font if it has every character, else installed ones; a warning names letters
        that none of them has.

        Args:
            texts: everything that will be written.
            size_px: height of the letters.
            font_path: a font to use before any other.

        Raises:
            DataError: `font_path` is given and is not a font.
        """
        first = pillows_own(size_px) if font_path is None else load(font_path, size_px)
        if first is None:
            raise DataError(
                f"font_path must name a TrueType or OpenType font, {font_path} is not one; "
                "correct the path or leave it out"
            )
        wanted = {c for text in texts for c in one_line(text) if not c.isascii()}
        lacking = {c for c in wanted if not has(first, c)}
        fonts = [first]
        for font in installed(size_px) if lacking else ():
            if font_path is None and all(has(font, c) for c in {*wanted, *_LATIN}):
                fonts, lacking = [font], set()  # one font for all looks better than two
            elif found := {c for c in lacking if has(font, c)}:
                fonts, lacking = [*fonts, font], lacking - found
            if not lacking:
                break
        for script, letters in itertools.groupby(sorted(lacking, key=_script), _script):
            _warn(script, "".join(sorted(letters)[:8]))
        return cls(fonts=tuple(fonts), size_px=size_px)

    def width(self, text: str) -> float:
        """Pixels from the first letter to the end of the last."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def draw(
        self,
        pen: ImageDraw.ImageDraw,
        xy: tuple[float, float],
        text: str,
        *,
        fill: tuple[int, int, int],
    ) -> None:
        """Write a line that begins at x and whose middle is at y."""
        ascent, descent = self.fonts[0].getmetrics()
        x, y = xy[0], xy[1] + (ascent - descent) / 2
        for font, part in self._runs(text):
            pen.text((x, y), part, font=font, fill=fill, anchor="ls")
            x += font.getlength(part)

    def _runs(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        """Parts of a text, each with the font that has its letters."""
        if len(self.fonts) == 1:
            yield self.fonts[0], text
            return
        for font, part in itertools.groupby(text, self._font_of):
            yield font, "".join(part)

    def _font_of(self, character: str) -> ImageFont.FreeTypeFont:
        if character.isascii():
            return self.fonts[0]
        return next((font for font in self.fonts if has(font, character)), self.fonts[0])

    def spell(self, text: str) -> str:
        """One line of characters that a font has; accents are dropped, others become "?"."""
        return "".join(self._spell_character(c) for c in one_line(text))

    def fit(self, text: str, room: float) -> str:
        """The text in characters of the fonts; three dots cut what is wider than the room."""
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
        if character.isascii() or any(has(font, character) for font in self.fonts):
            return character
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        return plain or "?"


def one_line(text: str) -> str:
    """The printable characters of a text, blanks as single spaces, at most 4,000 of them."""
    text = " ".join(text[:MAX_TEXT_CHARS].split())
    return "".join(c for c in text if c.isprintable())


def _script(character: str) -> str:
    """The first word of a character's name, such as CJK, HANGUL or THAI."""
    return unicodedata.name(character, "UNKNOWN").split()[0]


@lru_cache(maxsize=256)
def _warn(script: str, letters: str) -> None:
    """Name letters that cannot be drawn, once."""
    logger.warning(
        "no font of this system has %s letters such as %s, so pictures show them as ?; install one "
        "that has them, such as Noto Sans or Noto Sans CJK, or name its file as font_path of "
        "DrawStyle",
        script,
        letters,
    )
