"""Pascal VOC's XML files, one a picture; outlines stand in `polygon`, as Roboflow writes them.

The devkit's own files count pixels from 1 and name the last one inside, so a box goes from
`xmin - 1` to `xmax`; they are known by their `source/database`. LabelImg, CVAT and Roboflow write
edges from 0. `first_pixel` in own-format.json says it for files that name no source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from paligemma.errors import DataError
from paligemma.tasks.own.found import SPLITS, Found, OwnForm, label_files, split_names
from paligemma.tasks.own.labels import (
    LabelledObject,
    LabelledPicture,
    OwnRow,
    RowError,
    UprightPicture,
    picture_beside,
    rows_of_files,
)
from paligemma.tasks.reading.files import read_text_lines

NAME = "Pascal VOC"
LOOKS_FOR = "train/*.xml, or Annotations/*.xml with ImageSets/Main/train.txt or without"
_DEVKIT = re.compile(r"\bVOC ?20\d\d\b")
_MAX_BYTES = 4 << 20
_MAX_CORNERS = 10_000


def find(data: Path, split: str, form: OwnForm) -> Found | None:
    """Find the XML files of a split; a folder without splits is `train`."""
    paths = _paths(data, split) if data.is_dir() else []
    if not paths:
        return None
    return Found(format=NAME, path=paths[0].parent, rows=partial(_rows, data, paths, form))


def _paths(data: Path, split: str) -> list[Path]:
    lists = data / "ImageSets" / "Main"
    if any((lists / f"{name}.txt").is_file() for name in split_names(*SPLITS)):
        listed = next((p for n in split_names(split) if (p := lists / f"{n}.txt").is_file()), None)
        stems = [] if listed is None else [line.split()[0] for _, line in read_text_lines(listed)]
        return [data / "Annotations" / f"{Path(stem).name}.xml" for stem in stems]
    return label_files(data, split, ".xml")


def _rows(data: Path, paths: list[Path], form: OwnForm) -> Iterator[OwnRow]:
    every = (path for split in SPLITS for path in _paths(data, split))
    if form.first_pixel not in (-1, 0, 1):
        raise DataError(
            f"first_pixel in own-format.json must be 0, 1 or -1 (by the file), got "
            f"{form.first_pixel}"
        )
    read = partial(_picture, root=data, first=form.first_pixel)
    return rows_of_files(paths, every, read, masks=form.masks)


def _picture(path: Path, root: Path, first: int) -> LabelledPicture:
    tree = _tree(path)
    if first < 0:
        texts = [tree.findtext(f"source/{name}") or "" for name in ("database", "annotation")]
        first = int(any(map(_DEVKIT.search, texts)))
    size = _size(tree, path)
    name = tree.findtext("filename") or ""
    picture = UprightPicture(path=picture_beside(path, name, root), folder=root, size_hw=size)
    size_hw = size
    return LabelledPicture(
        id=f"{path.parent.name}/{path.stem}",
        where=f"{path}",
        picture=picture,
        objects=tuple(
            _object(one, f"{path}, object {k}", size_hw, first)
            for k, one in enumerate(tree.findall("object"), start=1)
        ),
        size_hw=size,
    )


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, by which a small file could unfold into a large one."""

    def doctype(self, *_: object) -> NoReturn:
        raise ValueError("a document type is not allowed")


def _tree(path: Path) -> ElementTree.Element:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it may have {_MAX_BYTES} bytes and has more")
        parser = ElementTree.XMLParser(target=_WithoutDoctype())
        parser.feed(data)
        return parser.close()
    except (OSError, ValueError, ElementTree.ParseError, LookupError) as error:
        raise RowError("row", f"{path} must be XML of Pascal VOC: {str(error)[:200]}") from error


def _size(tree: ElementTree.Element, path: Path) -> tuple[int, int]:
    try:
        found = int(tree.findtext("size/height", "")), int(tree.findtext("size/width", ""))
    except ValueError:
        found = (0, 0)
    if min(found) < 1:
        raise RowError("row", f"{path}: size must hold width and height in pixels; add them")
    return found


def _object(
    one: ElementTree.Element, where: str, size_hw: tuple[int, int], first: int
) -> LabelledObject:
    label = (one.findtext("name") or "").strip()
    if not label:
        raise RowError("row", f"{where}: it must have a name; add its class")
    height, width = size_hw
    edges = [_number(one, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax")]
    x0, y0, x1, y1 = edges[0] - first, edges[1] - first, *edges[2:]
    return LabelledObject(
        label=label,
        box_yxyx=(y0 / height, x0 / width, y1 / height, x1 / width),
        rings=tuple(_ring(ring, where) / (width, height) for ring in one.findall("polygon")),
    )


def _ring(polygon: ElementTree.Element, where: str) -> np.ndarray:
    num = 0
    while num <= _MAX_CORNERS and polygon.find(f"x{num + 1}") is not None:
        num += 1
    if not 3 <= num <= _MAX_CORNERS:
        raise RowError("row", f"{where}: a polygon has 3 to {_MAX_CORNERS} corners x1, y1, x2, ...")
    return np.array([[_number(polygon, f"{a}{k}", where) for a in "xy"] for k in range(1, num + 1)])


def _number(one: ElementTree.Element, place: str, where: str) -> float:
    text = one.findtext(place, "")
    try:
        return float(text)
    except ValueError:
        raise RowError(
            "row", f"{where}: {place} must be a number of pixels, got {text[:40]!r}"
        ) from None
