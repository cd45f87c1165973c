"""The first pictures of a run over drawn scenes with the model's answers, on one sheet."""

from collections.abc import Sequence
from itertools import islice

from PIL import Image, ImageDraw

from paligemma.eval.page_pictures import detection_of
from paligemma.example import Example, Prediction
from paligemma.outputs.detections import Detections
from paligemma.outputs.draw import DrawStyle, draw_detections
from paligemma.outputs.lettering import Lettering

NUM_PICTURES, NUM_COLUMNS = 12, 3
_GAP_PX = 12
_PAPER, _INK = (250, 250, 248), (32, 34, 40)
_SIDE_PX, _LETTER_PX = 448, 14
_MAX_PIXELS = 2**24

Answered = tuple[Example, Prediction]


def contact_sheet(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Image.Image:
    """Draw one tile a picture: the boxes, the segmented mask, and every answer in words.

    Args:
        examples: examples of `tasks.scenes`, in order and with their pictures.
    """
    by_picture: dict[str | None, list[Answered]] = {}
    for example, answer in zip(examples, predictions, strict=True):
        by_picture.setdefault(example.unit, []).append((example, answer))
    tiles = [_tile(group) for group in islice(by_picture.values(), NUM_PICTURES)]
    rows = [tiles[k : k + NUM_COLUMNS] for k in range(0, len(tiles), NUM_COLUMNS)]
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


def _tile(group: Sequence[Answered]) -> Image.Image:
    """All detected boxes on the left, the segmented phrase on the right, words below."""
    picture = Image.fromarray(group[0][0].pictures[0].read(_MAX_PIXELS))
    by_task = {example.references["task"]: answer.objects for example, answer in group}
    style = DrawStyle(legend=False, min_side_px=_SIDE_PX)
    left, right = (
        draw_detections(
            picture,
            Detections(
                items=tuple(
                    detection_of(one, picture.size, one.score) for one in by_task.get(task, ())
                ),
                image_wh=picture.size,
            ),
            style=style,
        )
        for task in ("detect", "segment")
    )
    pair = Image.new("RGB", (left.width + right.width, left.height))
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width, 0))
    return _with_lines(pair, [_line(example, answer) for example, answer in group])


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


def _line(example: Example, answer: Prediction) -> str:
    """The prompt with the answer, and the truth where the answer in words differs."""
    references = example.references
    if "objects" in references:
        number, true_number = len(answer.objects), len(references["objects"])
        return f"{example.prefix}: {number} found, {true_number} there"
    # A region to caption stands in the prompt as location tokens, which people cannot read.
    words, is_region, _ = example.prefix.partition("<loc")
    place = " of one region" if is_region else ""
    text, truth = answer.text.strip(), references["text"]
    return f"{words.strip()}{place}: {text}" + ("" if text == truth else f"  (true: {truth})")
