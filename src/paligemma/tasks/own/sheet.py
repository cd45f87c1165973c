"""A contact sheet of labelled pictures: what a labeller marked, as it will be learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from paligemma.errors import DataError
from paligemma.outputs.draw import DrawStyle, draw_detections
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.sheet import on_sheet, with_lines
from paligemma.outputs.types import Detection
from paligemma.processing.image import MAX_PIXELS
from paligemma.processing.prompts import object_prompt
from paligemma.tasks.own.labels import LabelledObject, OwnExample, UprightPicture, checked_box

_SIDE_PX = 448
_PAPER = (250, 250, 248)


def labelled_sheet(examples: Sequence[OwnExample], num_columns: int) -> Image.Image:
    """Draw one tile an example: masks, boxes and labels, and its prompt below.

    Raises:
        ImageError: a picture cannot be read.
        DataError: a mask is damaged.
    """
    labels = sorted({marked.label for one in examples for marked in one.objects})
    style = DrawStyle(legend=False, min_side_px=_SIDE_PX, scale=1.3, labels=tuple(labels))
    return on_sheet([_tile(one, style) for one in examples], num_columns)


def _tile(example: OwnExample, style: DrawStyle) -> Image.Image:
    picture = Image.fromarray(example.pictures[0].read(MAX_PIXELS))
    picture.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    items = [_detection(one, picture.size, example.where) for one in example.objects]
    drawn = draw_detections(picture, items, style=style)
    drawn = ImageOps.contain(drawn, (_SIDE_PX, _SIDE_PX))
    drawn = ImageOps.pad(drawn, (_SIDE_PX, drawn.height), color=_PAPER)
    asked = object_prompt(example.prefix)
    if asked is None:
        lines = [example.prefix, example.targets[0]] if example.targets else [example.prefix]
    else:
        number = len(items)
        first = example.pictures[0]
        name = first.path.name if isinstance(first, UprightPicture) else example.id
        lines = [f"{name}: {number} object{'s' * (number != 1)}", example.prefix]
    return with_lines(drawn, [line for line in lines if line.strip()])


def _detection(one: LabelledObject, image_wh: tuple[int, int], where: str) -> Detection:
    width, height = image_wh
    mask = one.mask((height, width)) if one.has_mask else np.zeros((0, 0), bool)
    return Detection(
        label=one.label or None,
        box_yxyx=checked_box(one, where, None)[0],
        image_wh=image_wh,
        region=MaskRegion.from_array(mask) if mask.size else None,
    )


def chosen_rows(
    rows: Sequence[OwnExample | DataError], number: int
) -> tuple[list[OwnExample], list[str]]:
    """Rows spread evenly over a split, and the sentences of the bad ones."""
    good = [one for one in rows if isinstance(one, OwnExample)]
    places = np.unique(np.linspace(0, len(good) - 1, min(number, len(good))).round().astype(int))
    return [good[k] for k in places], [str(one) for one in rows if isinstance(one, DataError)]
