"""Contact sheets: many drawn pictures on one, each with lines of text below it."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from paligemma.outputs.lettering import Lettering

_GAP_PX, _LETTER_PX = 12, 14
_PAPER, _INK = (250, 250, 248), (32, 34, 40)


def on_sheet(tiles: Sequence[Image.Image], num_columns: int) -> Image.Image:
    """At least one tile, in rows on one sheet."""
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


def with_heads(picture: Image.Image, heads: Sequence[str]) -> Image.Image:
    """The picture with words above its columns, which are equally wide."""
    letters = Lettering.for_texts(heads, size_px=_LETTER_PX)
    height = round(1.9 * _LETTER_PX)
    tile = Image.new("RGB", (picture.width, picture.height + height), _PAPER)
    tile.paste(picture, (0, height))
    pen = ImageDraw.Draw(tile)
    width = picture.width // len(heads)
    for column, head in enumerate(heads):
        shown = letters.fit(head, width - 2 * _GAP_PX)
        letters.draw(pen, (column * width, height / 2), shown, fill=_INK)
    return tile


def with_lines(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
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
        letters.draw(pen, (_GAP_PX, y), line, fill=_INK)
    return tile
