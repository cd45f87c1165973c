"""Reads PubTabNet and FinTabNet, and writes tables as HTML with the place of every cell.

Source: github.com/ibm-aur-nlp/PubTabNet (`src/utils.py`, format_html);
developer.ibm.com/data/fintabnet.
"""

import html
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example, Picture
from paligemma.outputs.boxes import encode_boxes, format_loc
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import FileRow, require_object
from paligemma.tasks.reading.files import find_file, parse_json, read_lines, relative_name
from paligemma.tasks.reading.formats import read_format
from paligemma.tasks.reading.parquet import ParquetPicture
from paligemma.tasks.reading.pictures import CroppedPicture, FilePicture, picture_in

logger = logging.getLogger(__name__)

PUBTABNET = (
    "github.com/ibm-aur-nlp/PubTabNet (pubtabnet.tar.gz, version 2.0.0), whose download is gone; "
    "the hub data set docling-project/PubTabNet_OTSL holds its tables"
)
FINTABNET = (
    "developer.ibm.com/data/fintabnet (fintabnet.tar.gz, version 1.0.0), whose download is gone; "
    "the hub data set docling-project/FinTabNet_OTSL holds its tables"
)
FINTABNET_PAGES = (
    "rendered by you from the PDF pages of FinTabNet, 144 pixels an inch, as "
    "pages/{company}/{year}/page_{n}.png"
)
POINTS_PER_INCH = 72

_COORDS = re.compile(r"""\scoords\s*=\s*(?:"[^"]*"|'[^']*')""")
# In ibm-aur-nlp's own code contents follow these tokens.
_OPENINGS = ("<td>", ">")


@dataclass(frozen=True, kw_only=True)
class TableFormat:
    """Prompt and layout of a table; unpublished, so these are ours.

    Attributes:
        coords_order: order of the four location tokens of a cell: x0 y0 x1 y1 in any order.
        page_dpi: resolution at which FinTabNet's pages were rendered, pixels an inch.
    """

    prompt: str = "table"
    coords_order: str = "x0 y0 x1 y1"
    page_dpi: int = 144

    def __post_init__(self) -> None:
        if sorted(self.coords_order.split()) != ["x0", "x1", "y0", "y1"]:
            raise DataError(
                f"coords_order must name x0 y0 x1 y1 in some order, got {self.coords_order!r}"
            )
        if not 18 <= self.page_dpi <= 1200:
            raise DataError(f"page_dpi must lie in 18..1200 pixels an inch, got {self.page_dpi}")


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One table of a file.

    Attributes:
        structure: HTML tokens of the table without contents.
        boxes: box of each cell as the file has it, None for an empty cell.
    """

    structure: list[str]
    cells: list[list[str]]
    boxes: list[Sequence[float] | None]


def strip_coords(markup: str) -> str:
    """Take the places of cells out of HTML, as scoring does."""
    return _COORDS.sub("", markup)


def table_html(table: TableRow, coords: Sequence[str | None] | None = None) -> str:
    """Write a table with its contents, and with `coords` attributes where they are given.

    Contents go between each `<td...>` and its end in order; single characters are escaped, inline
    tags are kept.
    """
    parts: list[str] = []
    at = 0
    for token in table.structure:
        if token in _OPENINGS and at < len(table.cells):
            place = coords[at] if coords else None
            if place:
                token = f'{token[:-1]} coords="{place}">'
            parts.append(token)
            parts += [html.escape(one) if len(one) == 1 else one for one in table.cells[at]]
            at += 1
        else:
            parts.append(token)
    return f"<table>{''.join(parts)}</table>"


def table_target(
    table: TableRow, boxes_xyxy_px: Sequence[Sequence[float] | None], side_px: int, order: str
) -> str:
    """Write the answer to train on: HTML with the place of every cell that holds something.

    Args:
        boxes_xyxy_px: boxes of the cells in pixels of the picture, None for a cell without one.
        side_px: side of the square to which the picture is padded, on the right and below.
        order: see `TableFormat.coords_order`.
    """
    coords: list[str | None] = []
    for box, tokens in zip(boxes_xyxy_px, table.cells, strict=True):
        if box is None or not tokens:
            coords.append(None)
            continue
        edges = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        bins = encode_boxes([edges[name] / side_px for name in order.split()])
        coords.append(format_loc(bins.tolist()))
    return table_html(table, coords)


def read_pubtabnet(data: Path, split: str) -> Iterator[Example]:
    """Read PubTabNet 2.0.0; no source names the split that was scored for PaliGemma 2."""
    name = "PubTabNet_2.0.0.jsonl"
    path = find_file(data, name, f"pubtabnet/{name}", source=PUBTABNET)
    style = read_format(data, "pubtabnet", TableFormat())
    folder = path.parent / split
    if not folder.is_dir():
        folder = find_file(data, split, f"pubtabnet/{split}", source=PUBTABNET)
    for row, table in _tables(path, split):
        picture = picture_in(folder, _file_name(row))
        name = row.identifier("imgid")
        yield _whole_picture_example(name, picture, table, split, style)


def copied_tables(
    rows: Iterator[tuple[FileRow, ParquetPicture]], data: Path, split: str, *, task: str
) -> Iterator[Example]:
    """Make the examples of a copy, whose boxes are pixels of the picture of the table.

    Args:
        task: name of the benchmark, whose format is read.
    """
    style = read_format(data, task, TableFormat())
    for row, picture in rows:
        table = _copied_table(row)
        if _is_kept(table, split, row.where):
            name = row.identifier("imgid" if "imgid" in row else "table_id")
            yield _whole_picture_example(name, picture, table, split, style)


def _whole_picture_example(
    name: str,
    picture: FilePicture | ParquetPicture,
    table: TableRow,
    split: str,
    style: TableFormat,
) -> Example:
    targets = []
    if split == "train":
        side_px = max(picture.stored_size_hw())
        targets = [table_target(table, table.boxes, side_px, style.coords_order)]
    return example_of(
        name,
        style.prompt,
        picture=picture,
        answers=targets,
        references={"html": table_html(table)},
    )


def read_fintabnet(data: Path, split: str) -> Iterator[Example]:
    """Read FinTabNet 1.0.0: boxes in PDF points from the bottom left, tables cut out of pages."""
    names = [f"FinTabNet_1.0.0_{kind}_{split}.jsonl" for kind in ("cell", "table")]
    path = find_file(data, *names, *(f"fintabnet/{name}" for name in names), source=FINTABNET)
    style = read_format(data, "fintabnet", TableFormat())
    pages = find_file(data, "pages", "fintabnet/pages", source=FINTABNET_PAGES)
    for row, table in _tables(path, split):
        stem = _file_name(row).removesuffix(".pdf")
        crop = _crop(picture_in(pages, f"{stem}.png"), row, style.page_dpi)
        targets = []
        if split == "train":
            boxes = [crop.to_pixels(box) if box is not None else None for box in table.boxes]
            targets = [table_target(table, boxes, crop.side_px, style.coords_order)]
        yield example_of(
            row.identifier("table_id"),
            style.prompt,
            picture=crop.picture,
            answers=targets,
            references={"html": table_html(table)},
        )


@dataclass(frozen=True, kw_only=True)
class PageCrop:
    """A table on a rendered page.

    Attributes:
        picture: part of the page that shows the table.
        corner_px: left and top edge of the part on the page.
        pixels_a_point: pixels per PDF point.
    """

    picture: Picture
    corner_px: tuple[int, int]
    side_px: int
    page_height_px: int
    pixels_a_point: float

    def to_pixels(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """Turn (x0, y0, x1, y1) from points from the bottom left to pixels from the top."""
        left, top = self.corner_px
        x0, y0, x1, y1 = (n * self.pixels_a_point for n in box)
        height = self.page_height_px
        return x0 - left, height - y1 - top, x1 - left, height - y0 - top


def _crop(page: FilePicture, row: FileRow, dpi: int) -> PageCrop:
    box = _box(row)
    height, width = page.stored_size_hw()
    scale = dpi / POINTS_PER_INCH
    x0, y0, x1, y1 = (n * scale for n in box)
    edges = round(x0), round(height - y1), round(x1), round(height - y0)
    left, top, right, bottom = edges
    # A table may touch the edge of the page; more than a point beyond is another resolution.
    if min(left, top) < -scale or right > width + scale or bottom > height + scale:
        raise row.error(
            f"the table at {box} points must lie on its page, but {page.path.name} has "
            f"{width}x{height} pixels at {dpi} an inch; render the pages at that resolution, or "
            "state theirs as page_dpi in fintabnet-format.json"
        )
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        raise row.error(f"the table at {box} points has no area")
    return PageCrop(
        picture=CroppedPicture(
            path=page.path, folder=page.folder, box_xyxy_px=(left, top, right, bottom)
        ),
        corner_px=(left, top),
        side_px=max(right - left, bottom - top),
        page_height_px=height,
        pixels_a_point=scale,
    )


def _tables(path: Path, split: str) -> Iterator[tuple[FileRow, TableRow]]:
    """Read the rows of one split; training leaves out tables with too few or many contents.

    Rows of other splits are recognised by their text, since parsing all of them takes minutes.
    """
    marker = re.compile(rf'"split"\s*:\s*"{split}"'.encode())
    for number, line in read_lines(path):
        if not marker.search(line):
            continue
        where = f"{path}, row {number}"
        row = FileRow(require_object(parse_json(line, where), where), where, number)
        if row.text("split") != split:
            continue
        table = _table(row)
        if _is_kept(table, split, where):
            yield row, table


def _is_kept(table: TableRow, split: str, where: str) -> bool:
    """Whether the contents of a table fit its cells, or it is no table to train on."""
    places = sum(token in _OPENINGS for token in table.structure)
    if places == len(table.cells):
        return True
    if split == "train":
        logger.info("%s: left out, %d contents for %d cells", where, len(table.cells), places)
        return False
    logger.warning("%s: %d contents for %d cells; kept", where, len(table.cells), places)
    return True


def _copied_table(row: FileRow) -> TableRow:
    """A table whose cells are lists, one a row of the table; an empty cell's box says nothing."""
    rows = row.values("cells", list)
    found = [FileRow({"cells": one}, row.where).objects("cells") for one in rows]
    cells = [cell for line in found for cell in line]
    contents = [cell.texts("tokens") for cell in cells]
    return TableRow(
        structure=row.texts("tokens"),
        cells=contents,
        boxes=[
            cell.values("bbox", float)[:4] if tokens and cell.fields.get("bbox") else None
            for cell, tokens in zip(cells, contents, strict=True)
        ],
    )


def _table(row: FileRow) -> TableRow:
    markup = row.object("html")
    cells = markup.objects("cells")
    return TableRow(
        structure=markup.object("structure").texts("tokens"),
        cells=[cell.texts("tokens") for cell in cells],
        boxes=[_box(cell) if "bbox" in cell else None for cell in cells],
    )


def _box(row: FileRow) -> list[float]:
    box = row.values("bbox", float)
    if len(box) != 4 or any(abs(n) > 1e6 for n in box):
        raise row.error(f"bbox must be [x0, y0, x1, y1], got {str(box)[:80]}")
    return box


def _file_name(row: FileRow) -> str:
    return str(relative_name(row.text("filename"), f"{row.where}: filename"))
