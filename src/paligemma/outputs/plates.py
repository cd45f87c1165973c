"""What is written on and below a drawn picture: label plates, the legend, an answer in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from paligemma.outputs.lettering import Lettering
from paligemma.outputs.palette import Colour, contrasting

Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the canvas

_STRIP = (24, 26, 31)
_STRIP_TEXT = (236, 238, 242)
_STRIP_MUTED = (160, 166, 178)
_MAX_LEGEND_ROWS = 4
_MAX_TEXT_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Lengths in pixels of the canvas, all from its area so that every picture looks alike."""

    letters: Lettering
    line: int
    gap: int

    @classmethod
    def of(
        cls, wh: tuple[int, int], texts: Sequence[str], *, scale: float, font_path: str | None
    ) -> Sizes:
        """Sizes for a canvas and for what is written on it.

        Args:
            wh: width and height of the canvas, pixels.
            texts: everything that will be written, which decides the font.
            font_path: a TrueType font; None chooses one.

        Raises:
            DataError: `font_path` is not a font.
        """
        side = math.sqrt(wh[0] * wh[1]) * scale
        letter = max(13, round(0.022 * side))
        return cls(
            letters=Lettering.for_texts(texts, size_px=letter, font_path=font_path),
            line=max(2, round(0.004 * side)),
            gap=max(3, round(0.4 * letter)),
        )


def draw_plate(
    canvas: Image.Image,
    name: str,
    box: Rect,
    *,
    score: float | None,
    colour: Colour,
    taken: list[Rect],
    sizes: Sizes,
) -> None:
    """Write a name and a confidence on a rounded plate where it hides no other plate.

    Args:
        box: box of the object, to which the plate keeps close.
        score: confidence, or None to leave it out.
        taken: plates that are there already; the new plate is appended.
    """
    letters = sizes.letters
    pad = max(3, 2 * sizes.gap // 3)
    suffix = "" if score is None else f" {score:.2f}"
    room: float = canvas.width - 2 * pad - math.ceil(letters.width(suffix))
    if room < 2 * letters.size_px:  # no room for both; the name says more than the number
        suffix, room = "", canvas.width - 2 * pad
    # A plate far wider than its box hides other objects; the legend has the whole name.
    own = box[2] - box[0] - 2 * pad - letters.width(suffix)
    room = min(room, max(own, 8 * letters.size_px))
    text = letters.fit(name, room) + suffix
    size = (
        min(canvas.width, math.ceil(letters.width(text)) + 2 * pad),
        min(canvas.height, round(1.4 * letters.size_px)),
    )
    x, y = _place(box, size, canvas.size, taken, sizes.line)
    taken.append((x, y, x + size[0], y + size[1]))
    ink, radius, rim = contrasting(colour), max(2, size[1] // 5), max(1, sizes.line // 3)
    canvas.paste(ink, (x, y), _rounded(size, radius))
    inner = (max(1, size[0] - 2 * rim), max(1, size[1] - 2 * rim))
    canvas.paste(colour, (x + rim, y + rim), _rounded(inner, max(1, radius - rim)))
    start = (x + (size[0] - letters.width(text)) / 2, y + size[1] / 2)
    letters.draw(ImageDraw.Draw(canvas), start, text, fill=ink)


def _place(
    box: Rect, size: tuple[int, int], canvas: tuple[int, int], taken: Sequence[Rect], line: int
) -> tuple[int, int]:
    """The best corner for a plate: on top of the box, else inside, below, beside; never outside the
    picture, and over as little of other plates as can be."""
    x0, y0, x1, y1 = box
    w, h = size
    top = y0 + line
    wishes = [(x0, y0 - h), (x0, top), (x1 - w, y0 - h)]
    wishes += [(x, top) for x in range(x0 + w, x1 - w, w)][:8]
    wishes += [(x0, y) for y in range(top + h, y1 - h, h)][:8]
    wishes += [(x0, y1), (x1 - w, y1), (x1, y0), (x0 - w, y0)]
    best, least = (0, 0), math.inf
    others = np.array(taken, np.int64).reshape(-1, 4)
    for wish_x, wish_y in wishes:
        x, y = min(max(wish_x, 0), canvas[0] - w), min(max(wish_y, 0), canvas[1] - h)
        hidden = _hidden((x, y, x + w, y + h), others)
        # A wish that has to be pushed back into the picture strays from its box.
        cost = hidden + 0.01 * h * (abs(x - wish_x) + abs(y - wish_y))
        if cost < least:
            best, least = (x, y), cost
        if cost == 0:
            break
    return best


def with_legend(
    canvas: Image.Image,
    counts: Counter[str],
    colours: dict[str, Colour],
    sizes: Sizes,
) -> Image.Image:
    """The canvas with a strip below it: a swatch, a name and a count for each label, in rows."""
    letters = sizes.letters
    room = canvas.width - 4 * sizes.gap
    swatch = letters.size_px
    rows: list[list[tuple[str, str]]] = [[]]
    used = 0
    for index, (name, number) in enumerate(counts.items()):
        count = f"{number}"
        text = letters.fit(name, room - swatch - 5 * sizes.gap - letters.width(count))
        width = swatch + 5 * sizes.gap + math.ceil(letters.width(text) + letters.width(count))
        if rows[-1] and used + width > room:
            if len(rows) == _MAX_LEGEND_ROWS:
                rows.append([("", letters.fit(f"and {len(counts) - index} more labels", room))])
                break
            rows.append([])
            used = 0
        rows[-1].append((name, text))
        used += width
    if not counts:
        rows = [[("", letters.fit("nothing found", room))]]
    step = round(1.6 * letters.size_px)
    picture, pen = _with_strip(canvas, len(rows) * step + 2 * sizes.gap)
    for line, row in enumerate(rows):
        x, y = 2 * sizes.gap, canvas.height + sizes.gap + line * step + step // 2
        for name, text in row:
            ink = _STRIP_TEXT if name else _STRIP_MUTED
            if name:
                shape = _rounded((swatch, swatch), max(2, swatch // 5))
                picture.paste(colours[name], (x, y - swatch // 2), shape)
                x += swatch + sizes.gap
            letters.draw(pen, (x, y), text, fill=ink)
            x += math.ceil(letters.width(text)) + sizes.gap
            if name:
                letters.draw(pen, (x, y), str(counts[name]), fill=_STRIP_MUTED)
                x += math.ceil(letters.width(str(counts[name]))) + 3 * sizes.gap
    return picture


def with_caption(canvas: Image.Image, text: str, *, prompt: str, sizes: Sizes) -> Image.Image:
    """The canvas with a strip below it: three lines of the prompt, then twelve of the text."""
    letters = sizes.letters
    room = canvas.width - 4 * sizes.gap
    lines = [(line, _STRIP_MUTED) for line in letters.wrap(prompt, room, max_lines=3)]
    lines += [(line, _STRIP_TEXT) for line in letters.wrap(text, room, max_lines=_MAX_TEXT_LINES)]
    step = round(letters.size_px * 1.45)
    picture, pen = _with_strip(canvas, len(lines) * step + 2 * sizes.gap)
    for row, (line, colour) in enumerate(lines):
        y = canvas.height + sizes.gap + row * step + step // 2
        letters.draw(pen, (2 * sizes.gap, y), line, fill=colour)
    return picture


def _with_strip(canvas: Image.Image, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (canvas.width, canvas.height + height), _STRIP)
    picture.paste(canvas, (0, 0))
    return picture, ImageDraw.Draw(picture)


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """An antialiased rounded rectangle as a mask."""
    large = Image.new("L", (4 * size[0], 4 * size[1]), 0)
    ImageDraw.Draw(large).rounded_rectangle(
        (0, 0, large.width - 1, large.height - 1), 4 * radius, fill=255
    )
    return large.resize(size, Image.Resampling.BOX)


def _hidden(rect: Rect, others: NDArray[np.int64]) -> int:
    """Pixels that a rectangle shares with others, int64[N, 4], summed over them."""
    start = np.maximum(others[:, :2], rect[:2])
    stop = np.minimum(others[:, 2:], rect[2:])
    return int((stop - start).clip(0).prod(axis=1).sum())
