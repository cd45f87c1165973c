"""The first pictures of a run with what the model said of them, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from paligemma.outputs.detections import Detections
from paligemma.outputs.draw import DrawStyle, draw_detections
from paligemma.outputs.lettering import Lettering
from paligemma.scenes import Scene, SceneExample

NUM_COLUMNS = 3
_GAP_PX = 12
_PAPER, _INK = (250, 250, 248), (32, 34, 40)
_SIDE_PX, _LETTER_PX = 448, 14


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One prompt about a picture with the model's answer, to be drawn.

    Attributes:
        scene: the picture.
        example: the prompt.
        text: what the model wrote.
        detections: its objects; None for kinds that answer in words.
    """

    scene: Scene
    example: SceneExample
    text: str
    detections: Detections | None = None


def contact_sheet(samples: Sequence[Sample], *, num_columns: int = NUM_COLUMNS) -> Image.Image:
    """One tile a picture: found boxes, the mask asked for, and every answer in words.

    Args:
        samples: prompts and answers; those of one picture stand together.
        num_columns: tiles side by side.
    """
    by_picture: dict[int, list[Sample]] = {}
    for one in samples:
        by_picture.setdefault(one.scene.seed, []).append(one)
    tiles = [_tile(group) for group in by_picture.values()]
    rows = [tiles[k : k + num_columns] for k in range(0, len(tiles), num_columns)]
    width = max(sum(tile.width + _GAP_PX for tile in row) for row in rows) + _GAP_PX
    heights = [max(tile.height for tile in row) + _GAP_PX for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + _GAP_PX), _PAPER)
    y = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        x = _GAP_PX
        for tile in row:
            sheet.paste(tile, (x, y))
            x += tile.width + _GAP_PX
        y += height
    return sheet


def _tile(samples: Sequence[Sample]) -> Image.Image:
    """Everything found on the left, the segmented phrase on the right, words below."""
    scene = samples[0].scene
    by_task = {one.example.task: one.detections for one in samples}
    style = DrawStyle(legend=False, min_side_px=_SIDE_PX)
    left, right = (
        draw_detections(scene.image, by_task.get(task) or (), style=style)
        for task in ("detect", "segment")
    )
    pair = Image.new("RGB", (left.width + right.width, left.height))
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width, 0))
    return _with_lines(pair, [_line(one) for one in samples])


def _with_lines(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture with lines of text below, wrapped to its width."""
    letters = Lettering.for_texts(lines, size_px=_LETTER_PX, font_path=None)
    room = picture.width - 2 * _GAP_PX
    wrapped = [part for line in lines for part in letters.wrap(line, room, max_lines=3)]
    step = round(1.45 * _LETTER_PX)
    tile = Image.new("RGB", (picture.width, picture.height + step * len(wrapped) + _GAP_PX), _PAPER)
    tile.paste(picture, (0, 0))
    pen = ImageDraw.Draw(tile)
    for row, line in enumerate(wrapped):
        y = picture.height + _GAP_PX // 2 + row * step + step // 2
        pen.text((_GAP_PX, y), line, font=letters.font, fill=_INK, anchor="lm")
    return tile


def _line(one: Sample) -> str:
    """The prompt with the answer, and the truth where the answer in words differs."""
    if one.example.suffix is None:
        number = len(one.detections or ())
        return f"{one.example.prefix}: {number} found, {len(one.example.objects)} there"
    said, truth = one.text.strip(), one.example.suffix
    verdict = "" if said == truth else f"  (true: {truth})"
    place = " of one region" if one.example.prefix_box else ""
    return f"{one.example.prefix.strip()}{place}: {said}{verdict}"
