"""The attention pattern of one example as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from paligemma.errors import ConfigError
from paligemma.processing.inspection import ExampleView, TokenView

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito's palette: told apart with every kind of colour vision.
_COLOURS = {
    "image": (0, 114, 178),
    "prefix": (0, 158, 115),
    "sep": (230, 159, 0),
    "suffix": (213, 94, 0),
    "pad": (140, 140, 140),
}
_BLOCKED = (236, 236, 236)
_INK = (30, 30, 30)
_CELL_PX = 20
_FONT_PX = 13
_LABEL_PX = 132
_MARGIN_PX = 12
_LEGEND_PX = 92  # a line of swatches and three of text
_MAX_LABEL_CHARS = 16
_MAX_CELLS = {"image": 1, "prefix": 40, "sep": 1, "suffix": 40, "pad": 1}  # of one run
_MIN_WIDTH_PX = 620


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A run of positions drawn as one row and one column."""

    start: int
    stop: int
    role: str
    label: str


def attention_picture(mask: torch.Tensor, view: ExampleView) -> Image.Image:
    """Which position may attend to which: a row for each query, a column for each key.

    Image tokens and long runs share a cell, which is filled by the share of allowed pairs.

    Args:
        mask: bool[S, S], [query, key], over the positions of `view`.
        view: the example, for roles and pieces.

    Raises:
        ConfigError: the mask does not belong to the example.
    """
    from PIL import Image, ImageDraw, ImageFont

    size = len(view.roles)
    if tuple(mask.shape) != (size, size):
        raise ConfigError(
            f"the mask must be [{size}, {size}] for this example, got {list(mask.shape)}"
        )
    cells = _cells(view)
    grid_px = len(cells) * _CELL_PX
    width = max(_MARGIN_PX * 2 + _LABEL_PX + grid_px, _MIN_WIDTH_PX)
    height = _MARGIN_PX * 2 + _LABEL_PX + grid_px + _LEGEND_PX
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_PX)
    left = top = _MARGIN_PX + _LABEL_PX
    _draw_grid(draw, mask, cells, left, top)
    _draw_labels(picture, draw, font, cells, left, top)
    _draw_legend(draw, font, _MARGIN_PX, top + grid_px + _MARGIN_PX)
    return picture


def _cells(view: ExampleView) -> list[_Cell]:
    cells: list[_Cell] = []
    pieces = ["image"] * view.num_image_tokens + [_readable(token) for token in view.tokens]
    for role, run in itertools.groupby(range(len(view.roles)), key=view.roles.__getitem__):
        positions = list(run)
        cells += _run_cells(role, positions, [pieces[position] for position in positions])
    return cells


def _run_cells(role: str, positions: Sequence[int], labels: Sequence[str]) -> Iterator[_Cell]:
    """One cell a token; the middle of a long run, or all image tokens, in a single cell."""
    count, shown = len(positions), _MAX_CELLS[role]
    head = count if count <= shown else shown // 2
    tail = 0 if count <= shown else shown // 2
    bounds = [(index, index + 1) for index in range(head)]
    if head + tail < count:
        bounds.append((head, count - tail))
    bounds += [(index, index + 1) for index in range(count - tail, count)]
    for start, stop in bounds:
        yield _Cell(
            start=positions[start],
            stop=positions[start] + stop - start,
            role=role,
            label=labels[start] if stop - start == 1 else f"{role} x {stop - start}",
        )


def _readable(view: TokenView) -> str:
    """The piece in characters that Pillow's own font has."""
    text = view.piece.replace("\u2581", "_").replace("\n", "\\n").replace("\t", "\\t")
    if not text or any(not 0x20 <= ord(character) < 0x7F for character in text):
        text = f"#{view.token}"
    if len(text) > _MAX_LABEL_CHARS:
        text = text[: _MAX_LABEL_CHARS - 1] + "~"
    return text


def _draw_grid(
    draw: ImageDraw.ImageDraw, mask: torch.Tensor, cells: Sequence[_Cell], left: int, top: int
) -> None:
    for row, query in enumerate(cells):
        for column, key in enumerate(cells):
            allowed = mask[query.start : query.stop, key.start : key.stop].float().mean().item()
            colour = tuple(
                round(off + (on - off) * allowed)
                for on, off in zip(_COLOURS[key.role], _BLOCKED, strict=True)
            )
            x, y = left + column * _CELL_PX, top + row * _CELL_PX
            draw.rectangle((x, y, x + _CELL_PX - 2, y + _CELL_PX - 2), fill=colour)


def _draw_labels(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: Font,
    cells: Sequence[_Cell],
    left: int,
    top: int,
) -> None:
    from PIL import Image, ImageDraw

    for index, cell in enumerate(cells):
        middle = index * _CELL_PX + _CELL_PX // 2 - 1
        colour = _COLOURS[cell.role]
        draw.text((left - 6, top + middle), cell.label, fill=colour, font=font, anchor="rm")
        upright = Image.new("RGB", (_LABEL_PX, _CELL_PX), "white")
        ImageDraw.Draw(upright).text(
            (0, _CELL_PX // 2), cell.label, fill=colour, font=font, anchor="lm"
        )
        turned = upright.rotate(90, expand=True)
        picture.paste(turned, (left + index * _CELL_PX - 1, top - 6 - _LABEL_PX))


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    font: Font,
    left: int,
    top: int,
) -> None:
    x = left
    for name, colour in (*_COLOURS.items(), ("may not attend", _BLOCKED)):
        draw.rectangle((x, top, x + 14, top + 14), fill=colour)
        draw.text((x + 20, top + 7), name, fill=_INK, font=font, anchor="lm")
        x += 20 + round(draw.textlength(name, font=font)) + 22
    lines = (
        "Row: the token that looks (query). Column: the token looked at (key).",
        "Colour: it may attend, in the colour of the key. Pale: some pairs of a shared cell may.",
        "_ is a leading space, \\n the separator, #7 a piece in another script by its id.",
    )
    for number, line in enumerate(lines):
        draw.text((left, top + 32 + number * 20), line, fill=_INK, font=font)
