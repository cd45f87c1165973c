"""Pictures of results: boxes, masks and label plates on the image, a legend or a caption below it.

All sizes follow from the picture's, so a thumbnail and a poster look alike; a picture too small for
legible letters is enlarged by a whole factor first. Colours are those of Okabe and Ito, told apart
by colour-blind readers too; each label keeps its colour, in the order of first appearance.
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from paligemma.errors import ConfigError, ImageError
from paligemma.outputs.lettering import Lettering, one_line
from paligemma.outputs.types import NO_LABEL, Detection

Colour = tuple[int, int, int]
Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the canvas

OKABE_ITO: tuple[Colour, ...] = (
    (213, 94, 0),  # vermillion
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
)

_SEAM = (0, 0, 0, 80)
_STRIP = (24, 26, 31)
_STRIP_TEXT = (236, 238, 242)
_STRIP_MUTED = (160, 166, 178)
_MAX_LABEL_CHARS = 64
_MAX_SIDE_PX = 12_000
_MAX_SCALE = 10
_MAX_LEGEND_ROWS = 4
_MAX_TEXT_LINES = 12


@dataclass(frozen=True, kw_only=True)
class DrawStyle:
    """How results are drawn.

    Args:
      scale: multiplies letters and lines; in (0, 10].
      mask_opacity: of a mask's fill, in [0, 1].
      min_side_px: pictures whose longer side is below are enlarged by a whole factor; 0 never does.
      legend: whether a strip below lists labels and counts.
      scores: whether plates show confidences.
      font_path: a TrueType font; None takes Pillow's own, or an installed one that has the letters.
      label_order: labels that take the first colours, so that pictures beside each other agree.
    """

    scale: float = 1.0
    mask_opacity: float = 0.4
    min_side_px: int = 640
    legend: bool = True
    scores: bool = True
    font_path: str | None = None
    label_order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.scale, Real) or not 0 < self.scale <= _MAX_SCALE:
            raise ConfigError(
                f"the scale of a drawing must lie in (0, {_MAX_SCALE}], got {self.scale!r}; "
                "1 is usual"
            )
        if not isinstance(self.mask_opacity, Real) or not 0 <= self.mask_opacity <= 1:
            raise ConfigError(
                f"the opacity of masks must lie in [0, 1], got {self.mask_opacity!r}; 0.4 is usual"
            )
        if not isinstance(self.min_side_px, Real) or not 0 <= self.min_side_px <= _MAX_SIDE_PX:
            raise ConfigError(
                f"min_side_px must lie in 0..{_MAX_SIDE_PX}, got {self.min_side_px!r}; "
                "0 enlarges nothing"
            )


def draw_detections(
    image: Image.Image | np.ndarray,
    items: Sequence[Detection],
    *,
    image_wh: tuple[int, int] | None = None,
    style: DrawStyle | None = None,
) -> Image.Image:
    """The image with masks, boxes, label plates and a legend below.

    Args:
      image: the original image, PIL in any mode or uint8[H, W] or [H, W, 3].
      items: its objects; boxes without height or width are not drawn.
      image_wh: width and height that the image must have, where there may be no object to say so.
      style: see `DrawStyle`.

    Returns:
      RGB, at the image's size times a whole factor, plus the legend's height.

    Raises:
      ImageError: the size of the image is not the one of the objects.
    """
    style = style or DrawStyle()
    picture = _as_rgb(image)
    for width, height in [*([image_wh] if image_wh else []), *(item.image_wh for item in items)]:
        if picture.size != (width, height):
            raise ImageError(
                f"Detections of a {width}x{height} image can only be drawn on it, but this image "
                f"is {picture.width}x{picture.height}; pass the image that was asked about."
            )
    canvas, factor = _enlarged(picture, style)
    items = [item for item in items if item.is_valid]
    names = list(dict.fromkeys([*style.label_order, *(_name(d) for d in items)]))
    sizes = _Sizes.of(canvas.size, style, names)
    colours = {name: _colour(i) for i, name in enumerate(names)}
    by_area = sorted(items, key=_area, reverse=True)  # small objects come out on top
    for item in by_area:
        _draw_mask(canvas, item, colours[_name(item)], factor, sizes.line, style.mask_opacity)
    pen = ImageDraw.Draw(canvas, "RGBA")
    for item in by_area:
        _draw_box(pen, _rect(item, canvas.size), colours[_name(item)], sizes.line)
    taken: list[Rect] = []
    for item in reversed(by_area):  # small objects have the least choice and choose first
        _draw_plate(canvas, item, colours[_name(item)], taken, sizes, style)
    if not style.legend:
        return canvas
    return _with_legend(canvas, Counter(_name(d) for d in items), colours, sizes)


def draw_text_answer(
    image: Image.Image | np.ndarray,
    text: str,
    *,
    prompt: str = "",
    style: DrawStyle | None = None,
) -> Image.Image:
    """The image with the prompt and the answer in a strip below.

    Args:
      image: PIL in any mode or uint8[H, W] or [H, W, 3].
      text: the answer; at most twelve lines of it are shown.
      prompt: shown above it in a quieter tone; empty for none.
      style: see `DrawStyle`.

    Returns:
      RGB, at the image's size times a whole factor, plus the strip's height.
    """
    style = style or DrawStyle()
    canvas, _ = _enlarged(_as_rgb(image), style)
    sizes = _Sizes.of(canvas.size, style, [prompt, text])
    letters = sizes.letters
    room = canvas.width - 4 * sizes.gap
    lines = [(line, _STRIP_MUTED) for line in letters.wrap(prompt, room, max_lines=3)]
    lines += [(line, _STRIP_TEXT) for line in letters.wrap(text, room, max_lines=_MAX_TEXT_LINES)]
    step = round(letters.size_px * 1.45)
    picture, pen = _with_strip(canvas, len(lines) * step + 2 * sizes.gap)
    for row, (line, colour) in enumerate(lines):
        y = canvas.height + sizes.gap + row * step + step // 2
        pen.text((2 * sizes.gap, y), line, font=letters.font, fill=colour, anchor="lm")
    return picture


@dataclass(frozen=True)
class _Sizes:
    """Lengths in pixels of the canvas, all from its area so that every picture looks alike."""

    letters: Lettering
    line: int
    gap: int

    @classmethod
    def of(cls, wh: tuple[int, int], style: DrawStyle, texts: Sequence[str]) -> _Sizes:
        side = math.sqrt(wh[0] * wh[1]) * style.scale
        letter = max(13, round(0.022 * side))
        return cls(
            letters=Lettering.for_texts(texts, size_px=letter, font_path=style.font_path),
            line=max(2, round(0.004 * side)),
            gap=max(3, round(0.4 * letter)),
        )


def _as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ImageError(
                "An image array must be uint8[H, W] or uint8[H, W, 3], but is "
                f"{image.dtype}{list(image.shape)}; convert it first."
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ImageError(
            "an image to draw on must be a Pillow image or uint8[H, W, 3], got "
            f"{reprlib.repr(image)}; open it first, with PIL.Image.open"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F", "I;16", "I;16B"):
        values = np.asarray(upright, np.float64)
        low, high = float(values.min()), float(values.max())
        grey = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        upright = Image.fromarray(grey.astype(np.uint8))
    return upright.convert("RGB")


def _enlarged(picture: Image.Image, style: DrawStyle) -> tuple[Image.Image, int]:
    """A copy, enlarged by a whole factor where letters would not be legible."""
    long, short = max(picture.size), min(picture.size)
    wanted = max(round(style.min_side_px / long), round(style.min_side_px / 4 / short), 1)
    factor = max(1, min(wanted, _MAX_SIDE_PX // long))
    if factor == 1:
        return picture.copy(), 1
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC), factor


def _draw_mask(
    canvas: Image.Image, item: Detection, colour: Colour, factor: int, line: int, opacity: float
) -> None:
    """Lays a translucent fill and an antialiased outline over the object."""
    if item.region is None or not item.region.crop.size:
        return
    margin = 2 * line
    tile = Image.fromarray(item.region.crop.astype(np.uint8) * 255)
    if factor > 1:
        tile = tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.BICUBIC)
    tile = ImageOps.expand(tile, margin)
    # Box-blurred, a straight edge is a ramp of one line width to either side; its middle part is
    # the outline, with soft borders.
    outline = tile.filter(ImageFilter.BoxBlur(line)).point(_outline_levels())
    fill = tile.point([round(v * opacity) for v in range(256)])
    corner = tuple(c * factor - margin for c in item.region.corner_xy)
    canvas.paste(colour, (corner[0], corner[1]), ImageChops.lighter(outline, fill))


@lru_cache(maxsize=1)
def _outline_levels() -> list[int]:
    return [round(255 * min(1.0, max(0.0, 8 * (min(v, 255 - v) / 255 - 0.2)))) for v in range(256)]


def _draw_box(pen: ImageDraw.ImageDraw, rect: Rect, colour: Colour, line: int) -> None:
    """A line inside the box with a thin dark seam on both sides, seen on any background."""
    x0, y0, x1, y1 = rect
    seam = max(1, line // 3)
    pen.rectangle((x0 - seam, y0 - seam, x1 + seam, y1 + seam), outline=_SEAM, width=seam)
    if min(x1 - x0, y1 - y0) > 4 * line:
        inner = (x0 + line, y0 + line, x1 - line, y1 - line)
        pen.rectangle(inner, outline=_SEAM, width=seam)
    pen.rectangle(rect, outline=(*colour, 255), width=line)


def _draw_plate(
    canvas: Image.Image,
    item: Detection,
    colour: Colour,
    taken: list[Rect],
    sizes: _Sizes,
    style: DrawStyle,
) -> None:
    """Writes label and confidence on a rounded plate where it hides no other plate."""
    letters = sizes.letters
    pad = max(3, 2 * sizes.gap // 3)
    score = f" {item.score:.2f}" if style.scores and item.score is not None else ""
    room: float = canvas.width - 2 * pad - math.ceil(letters.width(score))
    if room < 2 * letters.size_px:  # no room for both; the name says more than the number
        score, room = "", canvas.width - 2 * pad
    # A plate wider than half the picture hides more than it tells; the legend has the whole name.
    room = min(room, max(canvas.width / 2, 8 * letters.size_px))
    text = letters.fit(_name(item), room) + score
    size = (
        min(canvas.width, math.ceil(letters.width(text)) + 2 * pad),
        min(canvas.height, round(1.4 * letters.size_px)),
    )
    x, y = _place(_rect(item, canvas.size), size, canvas.size, taken, sizes.line)
    taken.append((x, y, x + size[0], y + size[1]))
    canvas.paste(colour, (x, y), _rounded(size, max(2, size[1] // 5)))
    centre = (x + size[0] / 2, y + size[1] / 2)
    ink = (0, 0, 0) if _luminance(colour) > 0.2 else (255, 255, 255)
    ImageDraw.Draw(canvas).text(centre, text, font=letters.font, fill=ink, anchor="mm")


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
    for wish_x, wish_y in wishes:
        x, y = min(max(wish_x, 0), canvas[0] - w), min(max(wish_y, 0), canvas[1] - h)
        hidden = sum(_overlap((x, y, x + w, y + h), other) for other in taken)
        # A wish that has to be pushed back into the picture strays from its box.
        cost = hidden + 0.01 * h * (abs(x - wish_x) + abs(y - wish_y))
        if cost < least:
            best, least = (x, y), cost
        if cost == 0:
            break
    return best


def _with_legend(
    canvas: Image.Image,
    counts: Counter[str],
    colours: dict[str, Colour],
    sizes: _Sizes,
) -> Image.Image:
    """A strip below with one swatch, name and count a label, in rows."""
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
            pen.text((x, y), text, font=letters.font, fill=ink, anchor="lm")
            x += math.ceil(letters.width(text)) + sizes.gap
            if name:
                pen.text(
                    (x, y), str(counts[name]), font=letters.font, fill=_STRIP_MUTED, anchor="lm"
                )
                x += math.ceil(letters.width(str(counts[name]))) + 3 * sizes.gap
    return picture


def _with_strip(canvas: Image.Image, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (canvas.width, canvas.height + height), _STRIP)
    picture.paste(canvas, (0, 0))
    return picture, ImageDraw.Draw(picture)


def _rect(item: Detection, canvas: tuple[int, int]) -> Rect:
    """The box in pixels of the canvas, at least two wide and high, inside it."""
    y0, x0, y1, x1 = item.box_yxyx
    width, height = canvas
    left, top = (min(max(round(c * n), 0), n - 2) for c, n in ((x0, width), (y0, height)))
    right = min(max(round(x1 * width) - 1, left + 1), width - 1)
    bottom = min(max(round(y1 * height) - 1, top + 1), height - 1)
    return left, top, right, bottom


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """An antialiased rounded rectangle as a mask."""
    large = Image.new("L", (4 * size[0], 4 * size[1]), 0)
    ImageDraw.Draw(large).rounded_rectangle(
        (0, 0, large.width - 1, large.height - 1), 4 * radius, fill=255
    )
    return large.resize(size, Image.Resampling.BOX)


def _colour(index: int) -> Colour:
    """The palette, then its lighter and its darker shades."""
    shade = (index // len(OKABE_ITO)) % 3
    toward, share = ((0, 0.0), (255, 0.5), (0, 0.45))[shade]
    r, g, b = (round(c + (toward - c) * share) for c in OKABE_ITO[index % len(OKABE_ITO)])
    return r, g, b


def _luminance(colour: Colour) -> float:
    """Relative luminance in [0, 1] (WCAG 2.2)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _name(item: Detection) -> str:
    name = one_line(item.label or "") or NO_LABEL
    return name if len(name) <= _MAX_LABEL_CHARS else name[:_MAX_LABEL_CHARS].rstrip() + "..."


def _area(item: Detection) -> float:
    y0, x0, y1, x1 = item.box_yxyx
    return (y1 - y0) * (x1 - x0)


def _overlap(a: Rect, b: Rect) -> int:
    """Pixels that two rectangles share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)
