"""Pictures of results: boxes, masks and label plates on the image, a legend or a caption below it.

All sizes follow from the picture's, so a thumbnail and a poster look alike; a picture too small for
legible letters is enlarged by a whole factor first. A label has its colour in every picture, see
`palette`; black or white seams beside it stand out from grounds of the same colour.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from paligemma.errors import ConfigError, ImageError
from paligemma.outputs.lettering import one_line
from paligemma.outputs.palette import Colour, contrasting, label_colours
from paligemma.outputs.plates import Rect, Sizes, draw_plate, with_caption, with_legend
from paligemma.outputs.types import NO_LABEL, Detection

_SEAM_OPACITY = 170
_MAX_LABEL_CHARS = 64
_MAX_SIDE_PX = 12_000
_MAX_SCALE = 10


@dataclass(frozen=True, kw_only=True)
class DrawStyle:
    """How results are drawn.

    Attributes:
        scale: factor of letters and lines, in (0, 10].
        mask_opacity: opacity of a mask's fill, in [0, 1].
        min_side_px: least length of the longer side, to which smaller pictures are enlarged by a
            whole factor; 0 enlarges nothing.
        legend: whether a strip below lists labels and counts.
        scores: whether plates show confidences.
        font_path: a TrueType font; None takes Pillow's own, or an installed one that has the
            letters.
        labels: labels of other pictures beside which this one is shown; none takes a colour of
            theirs.
    """

    scale: float = 1.0
    mask_opacity: float = 0.4
    min_side_px: int = 640
    legend: bool = True
    scores: bool = True
    font_path: str | None = None
    labels: tuple[str, ...] = ()

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
        items: the objects of the image; boxes without height or width are not drawn.
        image_wh: width and height that the image must have, even if there are no objects.
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
                f"detections of a {width}x{height} image can only be drawn on it, got an image of "
                f"{picture.width}x{picture.height}; pass the image that was asked about"
            )
    canvas, factor = _enlarged(picture, style)
    items = [item for item in items if item.is_valid]
    names = [_name(item) for item in items]
    sizes = Sizes.of(canvas.size, names, scale=style.scale, font_path=style.font_path)
    colours = label_colours([*map(_cut, style.labels), *names])
    by_area = sorted(items, key=_area, reverse=True)  # small objects come out on top
    for item in by_area:
        _draw_mask(canvas, item, colours[_name(item)], factor, sizes.line, style.mask_opacity)
    pen = ImageDraw.Draw(canvas, "RGBA")
    for item in by_area:
        _draw_box(pen, _rect(item, canvas.size), colours[_name(item)], sizes.line)
    taken: list[Rect] = []
    for item in reversed(by_area):  # small objects have the least choice and choose first
        draw_plate(
            canvas,
            _name(item),
            _rect(item, canvas.size),
            score=item.score if style.scores else None,
            colour=colours[_name(item)],
            taken=taken,
            sizes=sizes,
        )
    if not style.legend:
        return canvas
    return with_legend(canvas, Counter(_name(d) for d in items), colours, sizes)


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
        prompt: the question, shown above the answer in a quieter tone; "" for none.
        style: see `DrawStyle`.

    Returns:
        RGB, at the image's size times a whole factor, plus the strip's height.
    """
    style = style or DrawStyle()
    canvas, _ = _enlarged(_as_rgb(image), style)
    sizes = Sizes.of(canvas.size, [prompt, text], scale=style.scale, font_path=style.font_path)
    return with_caption(canvas, text, prompt=prompt, sizes=sizes)


def _as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ImageError(
                "an image array must be uint8[H, W] or uint8[H, W, 3], got "
                f"{image.dtype}{list(image.shape)}; convert it first"
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
    """Lay a translucent fill and an antialiased outline over the object."""
    if item.region is None or not item.region.crop.size:
        return
    margin = 4 * line + factor
    tile = Image.fromarray(item.region.crop.astype(np.uint8) * 255)
    tile = tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.NEAREST)
    tile = ImageOps.expand(tile, margin)
    if factor > 1:  # round the steps of enlarged pixels
        tile = tile.filter(ImageFilter.GaussianBlur(factor / 2))
    # Box-blurred, a straight edge is a ramp of one radius to either side; its middle part is the
    # outline, with soft borders, and that of a wider blur shows as a seam on both its sides.
    outline = tile.filter(ImageFilter.BoxBlur(line)).point(_outline_levels())
    seam = tile.filter(ImageFilter.BoxBlur(line + 1.7 * _seam_px(line))).point(_outline_levels())
    fill = tile.point([round(v * opacity) for v in range(256)])
    x, y = (c * factor - margin for c in item.region.corner_xy)
    canvas.paste(colour, (x, y), fill)
    canvas.paste(
        contrasting(colour), (x, y), seam.point([v * _SEAM_OPACITY // 255 for v in range(256)])
    )
    canvas.paste(colour, (x, y), outline)


@lru_cache(maxsize=1)
def _outline_levels() -> list[int]:
    return [round(255 * min(1.0, max(0.0, 8 * (min(v, 255 - v) / 255 - 0.2)))) for v in range(256)]


def _draw_box(pen: ImageDraw.ImageDraw, rect: Rect, colour: Colour, line: int) -> None:
    """A line inside the box with a thin seam on both sides, seen on any background."""
    x0, y0, x1, y1 = rect
    seam, ink = _seam_px(line), (*contrasting(colour), _SEAM_OPACITY)
    pen.rectangle((x0 - seam, y0 - seam, x1 + seam, y1 + seam), outline=ink, width=seam)
    if min(x1 - x0, y1 - y0) > 4 * line:
        inner = (x0 + line, y0 + line, x1 - line, y1 - line)
        pen.rectangle(inner, outline=ink, width=seam)
    pen.rectangle(rect, outline=(*colour, 255), width=line)


def _rect(item: Detection, canvas: tuple[int, int]) -> Rect:
    """The box in pixels of the canvas, at least two wide and high, inside it."""
    y0, x0, y1, x1 = item.box_yxyx
    width, height = canvas
    left, top = (min(max(round(c * n), 0), n - 2) for c, n in ((x0, width), (y0, height)))
    right = min(max(round(x1 * width) - 1, left + 1), width - 1)
    bottom = min(max(round(y1 * height) - 1, top + 1), height - 1)
    return left, top, right, bottom


def _seam_px(line: int) -> int:
    return max(1, round(0.4 * line))


def _name(item: Detection) -> str:
    return _cut(item.label or "")


def _cut(label: str) -> str:
    name = one_line(label) or NO_LABEL
    return name if len(name) <= _MAX_LABEL_CHARS else name[:_MAX_LABEL_CHARS].rstrip() + "..."


def _area(item: Detection) -> float:
    y0, x0, y1, x1 = item.box_yxyx
    return (y1 - y0) * (x1 - x0)
