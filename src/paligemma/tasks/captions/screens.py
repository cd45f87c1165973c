"""Screens of phone applications: what a screen shows, and what one of its widgets does.

Source: the builders screen2words and widgetcap in big_vision/datasets; RICO (Deka et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.outputs.boxes import Box
from paligemma.tasks.reading.files import (
    FilePicture,
    find_file,
    read_csv,
    read_json,
    read_lines,
    value,
    values,
)
from paligemma.tasks.reading.prefixes import CAPTION_PREFIX
from paligemma.tasks.reading.rows import of_split

SCREEN2WORDS = "github.com/google-research-datasets/screen2words"
WIDGETCAP = "github.com/google-research-datasets/widget-caption"
RICO = "interactionmining.org/rico (unique_uis.tar.gz)"

_SPLITS = {"test": "", "dev": "", "train": ""}
# View hierarchies are written for screens of this height, whatever the size of the picture.
_CANVAS_HEIGHT = 2560
# Bounds may leave the screen by rounding; more is damage.
_ROUNDING = 1e-3
# Captions of one widget stand in one field.
_BETWEEN_CAPTIONS = "|"


def read_screen2words(data: Path, split: str) -> Iterator[Example]:
    """One screen with the summaries that people wrote of it."""
    of_split(_SPLITS, split, "screen2words")
    table = find_file(
        data, "screen_summaries.csv", "screen2words/screen_summaries.csv", source=SCREEN2WORDS
    )
    screens = find_file(table.parent, f"split/{split}_screens.txt", source=SCREEN2WORDS)
    images = find_file(data, "combined", source=RICO)
    summaries: dict[str, list[str]] = {}
    for _, row in read_csv(table, ("screenId", "summary")):
        summaries.setdefault(row["screenId"].strip(), []).append(row["summary"])
    for number, screen in _listed(screens):
        if screen not in summaries:
            raise DataError(f"{screens}, row {number}: {table} has no summary of screen {screen}")
        yield Example(
            id=screen,
            prefix=CAPTION_PREFIX,
            pictures=(FilePicture(path=images / f"{screen}.jpg"),),
            references=summaries[screen],
            targets=tuple(summaries[screen]),
        )


def read_widgetcap(data: Path, split: str) -> Iterator[Example]:
    """One widget with all its captions, marked on its screen by a red box."""
    of_split(_SPLITS, split, "widgetcap")
    table = find_file(
        data, "widget_captions.csv", "widget-caption/widget_captions.csv", source=WIDGETCAP
    )
    listed = find_file(table.parent, f"{split}.txt", f"split/{split}.txt", source=WIDGETCAP)
    images = find_file(data, "combined", source=RICO)
    screens = {screen for _, screen in _listed(listed)}
    for number, row in read_csv(table, ("screenId", "nodeId", "captions")):
        screen, node = row["screenId"].strip(), row["nodeId"].strip()
        if screen not in screens:
            continue
        where = f"{table}, row {number}"
        captions = row["captions"].split(_BETWEEN_CAPTIONS)
        if not any(captions):
            raise DataError(f"{where} must have at least one caption, it has none")
        yield Example(
            id=f"{screen}_{node}",
            prefix=CAPTION_PREFIX,
            pictures=(FilePicture(path=images / f"{screen}.jpg"),),
            references=captions,
            targets=tuple(captions),
            mark_box_yxyx=_widget_box(images, screen, node, where),
        )


def node_bounds(root: Any, node: str, where: str) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) on the canvas of the node that a dotted path such as "0.1.2" leads to.

    The first number names the root.

    Raises:
        DataError: no such node, or bounds that are no four numbers.
    """
    found = root
    for step in node.split(".")[1:]:
        children = value(found, "children", list, where)
        if not step.isdecimal() or int(step) >= len(children):
            raise DataError(f"{where} must lead to a node by {node!r}, but {step!r} is none")
        found = children[int(step)]
    bounds = values(found, "bounds", float, f"{where}, node {node}")
    if len(bounds) != 4:
        raise DataError(f"{where}, node {node}: bounds must be four numbers, got {bounds}")
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _widget_box(images: Path, screen: str, node: str, where: str) -> Box:
    """Of a node, normalised: the canvas is as wide as its height and the picture's shape say."""
    path = images / f"{screen}.json"
    x0, y0, x1, y1 = node_bounds(_root(path), node, f"{path}")
    canvas_width = _CANVAS_HEIGHT * _aspect(images / f"{screen}.jpg")
    box = (y0 / _CANVAS_HEIGHT, x0 / canvas_width, y1 / _CANVAS_HEIGHT, x1 / canvas_width)
    inside = tuple(min(max(one, 0.0), 1.0) for one in box)
    is_near = all(abs(a - b) <= _ROUNDING for a, b in zip(box, inside, strict=True))
    if not is_near or inside[0] > inside[2] or inside[1] > inside[3]:
        raise DataError(
            f"{where}: widget {node} of screen {screen} must lie on the screen, its bounds are "
            f"{[round(one, 4) for one in box]} (ymin, xmin, ymax, xmax) of it"
        )
    return inside[0], inside[1], inside[2], inside[3]


@lru_cache(maxsize=8)
def _root(path: Path) -> Any:
    """Widgets of one screen follow one another."""
    activity = value(read_json(path), "activity", dict, f"{path}")
    return value(activity, "root", dict, f"{path}")


@lru_cache(maxsize=8)
def _aspect(path: Path) -> float:
    """Width over height, from the header alone."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.width / image.height
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"the screen {path} cannot be read: {error}") from error


def _listed(path: Path) -> Iterator[tuple[int, str]]:
    """Names, one a line."""
    for number, line in read_lines(path):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, row {number} must be text: {error}") from error
