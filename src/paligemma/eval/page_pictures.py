"""Pictures inside a page: small JPEG files as data, with boxes, masks and marks drawn."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from paligemma.outputs.boxes import Box
from paligemma.outputs.draw import DrawStyle, draw_detections
from paligemma.outputs.html import Html, el
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.rle import decode_rle
from paligemma.outputs.types import NO_LABEL, Detection

if TYPE_CHECKING:
    from paligemma.eval.outcomes import TrueObject
    from paligemma.example import FoundObject

SIDE_PX = 448
MAX_FRAMES = 4
_QUALITY = 72
_MAX_OBJECTS = 60
_RED = (255, 0, 0)


def picture_tile(pictures: Sequence[np.ndarray], mark_box_yxyx: Box | None = None) -> Html:
    """The pictures of an example side by side, at most four of a clip."""
    if len(pictures) > MAX_FRAMES:
        steps = np.linspace(0, len(pictures) - 1, MAX_FRAMES).round().astype(int)
        pictures = [pictures[k] for k in steps]
    side = SIDE_PX if len(pictures) == 1 else SIDE_PX // 2
    images = [_small(one, side) for one in pictures]
    if mark_box_yxyx is not None:
        for one in images:
            _outline(one, mark_box_yxyx)
    if len(images) == 1:
        return _image(images[0])
    return el("div", *map(_image, images), class_="pair")


def object_tiles(
    picture: np.ndarray,
    truth: Sequence[TrueObject],
    found: Sequence[FoundObject],
    whose: str = "answer",
) -> Html:
    """What is there and what was found, side by side; `whose` names the latter."""
    image = _small(picture, SIDE_PX)
    there = [detection_of(one, image.size, None) for one in truth]
    said = [detection_of(one, image.size, one.score) for one in found]
    # One colour a label in both pictures.
    labels = tuple(sorted({one.label or NO_LABEL for one in (*there, *said)}))
    return el(
        "div",
        el("figure", _drawn(image, there, labels), el("figcaption", f"reference: {len(there)}")),
        el("figure", _drawn(image, said, labels), el("figcaption", f"{whose}: {len(said)}")),
        class_="pair",
    )


def no_picture(why: str) -> Html:
    """A place without a picture, saying why."""
    return el("div", why, class_="empty")


def _small(picture: np.ndarray, side_px: int) -> Image.Image:
    image = Image.fromarray(np.asarray(picture, np.uint8)).convert("RGB")
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return image


def _drawn(image: Image.Image, items: Sequence[Detection], labels: tuple[str, ...]) -> Html:
    # Of very many only the surest are legible.
    kept = sorted(items, key=lambda one: -(one.score or 0.0))[:_MAX_OBJECTS]
    style = DrawStyle(legend=False, min_side_px=SIDE_PX, scale=1.5, labels=labels)
    return _image(draw_detections(image, kept, style=style))


def detection_of(
    one: TrueObject | FoundObject, image_wh: tuple[int, int], score: float | None
) -> Detection:
    """An object as it is drawn on a picture of that size, its edges moved into the picture."""
    y0, x0, y1, x1 = (min(max(c, 0.0), 1.0) if math.isfinite(c) else 0.0 for c in one.box_yxyx)
    return Detection(
        label=one.label,
        box_yxyx=(y0, x0, y1, x1),
        image_wh=image_wh,
        score=score,
        region=None if one.mask is None else _region(one.mask, image_wh),
    )


def _region(mask: Mapping[str, Any], image_wh: tuple[int, int]) -> MaskRegion:
    """COCO run lengths of the whole picture, at the size of the small one."""
    whole = Image.fromarray(decode_rle(mask).astype(np.uint8) * 255)
    small = whole.resize(image_wh, Image.Resampling.BOX)
    return MaskRegion.from_array(np.asarray(small) >= 128)


def _outline(image: Image.Image, box_yxyx: Box) -> None:
    y0, x0, y1, x1 = (min(max(c, 0.0), 1.0) for c in box_yxyx)
    corners = (
        x0 * (image.width - 1),
        y0 * (image.height - 1),
        x1 * (image.width - 1),
        y1 * (image.height - 1),
    )
    if corners[0] < corners[2] and corners[1] < corners[3]:
        ImageDraw.Draw(image).rectangle(corners, outline=_RED, width=2)


def _image(image: Image.Image) -> Html:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return el(
        "img",
        src=f"data:image/jpeg;base64,{data}",
        width=float(image.width),
        height=float(image.height),
        alt="",
        loading="lazy",
    )
