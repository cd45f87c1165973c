"""Reads screens of phone applications: summaries of a screen, captions of a widget.

Source: the builders screen2words and widgetcap in big_vision/datasets; RICO (Deka et al. 2017).
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example, Picture
from paligemma.outputs.boxes import Box
from paligemma.tasks.reading.examples import SourceRow, example_of
from paligemma.tasks.reading.file_rows import (
    FileRow,
    read_csv,
    read_object,
    require_object,
    whole_number,
)
from paligemma.tasks.reading.files import find_file, read_text_lines, relative_name
from paligemma.tasks.reading.pictures import picture_in
from paligemma.tasks.reading.prefixes import CAPTION_PREFIX

SCREEN2WORDS = "github.com/google-research-datasets/screen2words"
WIDGETCAP = "github.com/google-research-datasets/widget-caption"
RICO = "interactionmining.org/rico (unique_uis.tar.gz)"

SPLITS = ("test", "dev", "train")
# View hierarchies are written for screens of this height, whatever the size of the picture.
_CANVAS_HEIGHT = 2560
# Bounds may leave the screen by rounding; more is damage.
_ROUNDING = 1e-3
# Captions of one widget stand in one field.
_BETWEEN_CAPTIONS = "|"


def read_screen2words(data: Path, split: str) -> Iterator[Example]:
    """Read one screen with the summaries that people wrote of it."""
    table = find_file(
        data, "screen_summaries.csv", "screen2words/screen_summaries.csv", source=SCREEN2WORDS
    )
    screens = find_file(table.parent, f"split/{split}_screens.txt", source=SCREEN2WORDS)
    images = find_file(data, "combined", source=RICO)
    summaries: dict[str, list[str]] = {}
    for row in read_csv(table, ("screenId", "summary")):
        summaries.setdefault(row.text("screenId").strip(), []).append(row.text("summary"))
    for number, screen in read_text_lines(screens):
        if screen not in summaries:
            raise DataError(f"{screens}, row {number}: {table} has no summary of screen {screen}")
        yield example_of(
            screen,
            CAPTION_PREFIX,
            picture=picture_in(images, f"{screen}.jpg"),
            answers=summaries[screen],
        )


def read_widgetcap(data: Path, split: str) -> Iterator[Example]:
    """Read one widget with all its captions, marked on its screen by a red box."""
    table = find_file(
        data, "widget_captions.csv", "widget-caption/widget_captions.csv", source=WIDGETCAP
    )
    listed = find_file(table.parent, f"{split}.txt", f"split/{split}.txt", source=WIDGETCAP)
    images = find_file(data, "combined", source=RICO)
    screens = {screen for _, screen in read_text_lines(listed)}
    for row in read_csv(table, ("screenId", "nodeId", "captions")):
        screen, node = row.text("screenId").strip(), row.text("nodeId").strip()
        if screen in screens:
            captions = row.text("captions").split(_BETWEEN_CAPTIONS)
            box = _widget_box(images, screen, node, row.where)
            picture = picture_in(images, f"{screen}.jpg")
            yield _widget(f"{screen}_{node}", row, picture, captions, box)


def widgetcap_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a copy, whose boxes (x0, y0, x1, y1) are parts of the picture."""
    for row, picture in rows:
        bounds = row.values("bbox", float)
        if len(bounds) != 4:
            raise row.error(f"bbox must be four numbers, got {str(bounds)[:80]}")
        x0, y0, x1, y1 = bounds
        box = _on_screen((y0, x0, y1, x1), f"{row.where}: its widget")
        node = row.identifier("nodeId") if "nodeId" in row else str(row.number)
        name = f"{row.identifier('screenId')}_{node}"
        yield _widget(name, row, picture, row.texts("captions"), box)


def _widget(name: str, row: FileRow, picture: Picture, captions: list[str], box: Box) -> Example:
    if not any(captions):
        raise DataError(f"{row.where} must have at least one caption, it has none")
    example = example_of(name, CAPTION_PREFIX, picture=picture, answers=captions)
    return replace(example, mark_box_yxyx=box)


def node_bounds(root: FileRow, node: str) -> tuple[float, float, float, float]:
    """Find the bounds (x0, y0, x1, y1) on the canvas of the node of a path such as "0.1.2".

    The first number of the path is the root.

    Raises:
        DataError: no such node, or bounds that are no four numbers.
    """
    found = root
    for step in node.split(".")[1:]:
        children = found.value("children", list)
        place = whole_number(step)
        if place is None or place >= len(children):
            raise DataError(
                f"{root.where} must lead to a node by {node!r:.80}, but {step!r:.80} is none"
            )
        found = FileRow(require_object(children[place], root.where), root.where)
    found = FileRow(found.fields, f"{root.where}, node {node}")
    bounds = found.values("bounds", float)
    if len(bounds) != 4:
        raise found.error(f"bounds must be four numbers, got {bounds}")
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _widget_box(images: Path, screen: str, node: str, where: str) -> Box:
    """Normalise the bounds of a node; the canvas has the shape of the picture."""
    name = relative_name(f"{screen}.json", where)
    x0, y0, x1, y1 = node_bounds(_root(images / name), node)
    height, width = picture_in(images, f"{screen}.jpg").stored_size_hw()
    canvas_width = _CANVAS_HEIGHT * (width / height)
    box = (y0 / _CANVAS_HEIGHT, x0 / canvas_width, y1 / _CANVAS_HEIGHT, x1 / canvas_width)
    return _on_screen(box, f"{where}: widget {node} of screen {screen}")


def _on_screen(box: Box, what: str) -> Box:
    """A normalised box within the screen, which it may leave by rounding alone."""
    inside = tuple(min(max(one, 0.0), 1.0) for one in box)
    is_near = all(abs(a - b) <= _ROUNDING for a, b in zip(box, inside, strict=True))
    if not is_near or inside[0] > inside[2] or inside[1] > inside[3]:
        raise DataError(
            f"{what} must lie on the screen, its bounds are "
            f"{[round(one, 4) for one in box]} (ymin, xmin, ymax, xmax) of it"
        )
    return inside[0], inside[1], inside[2], inside[3]


@lru_cache(maxsize=8)
def _root(path: Path) -> FileRow:
    """Read the root of a view hierarchy; the widgets of a screen follow one another."""
    return read_object(path).object("activity").object("root")
