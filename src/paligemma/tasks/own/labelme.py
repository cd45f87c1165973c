"""LabelMe's JSON files, one a picture: polygons, rectangles and circles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from paligemma.json_file import read_json
from paligemma.tasks.own.found import SPLITS, Found, OwnForm, label_files
from paligemma.tasks.own.labels import (
    LabelledObject,
    LabelledPicture,
    OwnRow,
    RowError,
    UprightPicture,
    box_of_rings,
    picture_beside,
    rows_of_files,
)
from paligemma.tasks.reading.file_rows import FileRow, require_object

NAME = "LabelMe"
LOOKS_FOR = "train/*.json or *.json with shapes"
# A file may hold its picture.
_MAX_BYTES = 64 << 20
_FIRST_KEY = re.compile(rb'\s*\{\s*"(?:version|flags|shapes|imagePath|lineColor|fillColor)"\s*:')
_CIRCLE_CORNERS = 64


def find(data: Path, split: str, form: OwnForm) -> Found | None:
    """Find the files of a split; a folder without splits is `train`."""
    paths = _paths(data, split) if data.is_dir() else []
    if not paths:
        return None
    return Found(format=NAME, path=paths[0].parent, rows=partial(_rows, data, paths, form))


def _paths(data: Path, split: str) -> list[Path]:
    paths = [path for path in label_files(data, split, ".json") if path.name != "own-format.json"]
    if not paths:
        return []
    with paths[0].open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf")
    return paths if _FIRST_KEY.match(start) else []


def _rows(data: Path, paths: list[Path], form: OwnForm) -> Iterator[OwnRow]:
    every = (path for split in SPLITS for path in _paths(data, split))
    return rows_of_files(paths, every, partial(_picture, root=data), masks=form.masks)


def _picture(path: Path, root: Path) -> LabelledPicture:
    try:
        content = read_json(path, max_bytes=_MAX_BYTES)
    except (OSError, ValueError) as error:
        raise RowError("row", f"{path} must be JSON: {str(error)[:200]}") from error
    row = FileRow(require_object(content, f"{path}"), f"{path}")
    size_hw = row.integer("imageHeight"), row.integer("imageWidth")
    if min(size_hw) < 1:
        raise row.error(f"imageHeight and imageWidth must be pixels, got {size_hw}")
    name = row.text("imagePath")
    return LabelledPicture(
        id=f"{path.parent.name}/{path.stem}",
        where=f"{path}",
        picture=UprightPicture(path=picture_beside(path, name, root), folder=root, size_hw=size_hw),
        objects=tuple(_object(one, size_hw) for one in row.objects("shapes")),
        size_hw=size_hw,
    )


def _object(row: FileRow, size_hw: tuple[int, int]) -> LabelledObject:
    kind = row.fields.get("shape_type") or "polygon"
    points = row.values("points", list)
    numbers = [FileRow({"points": one}, row.where).values("points", float) for one in points]
    num = {"rectangle": len(points) in (2, 4), "circle": len(points) == 2}
    if not num.get(kind, kind == "polygon" and len(points) >= 3) or {*map(len, numbers)} != {2}:
        raise row.error(
            "a shape must be a polygon, a rectangle or a circle with its points (x, y), got "
            f"{kind!r} with {len(points)} points; draw it so"
        )
    corners = np.array(numbers) / (size_hw[1], size_hw[0])
    if kind == "rectangle":
        return LabelledObject(label=row.text("label"), box_yxyx=box_of_rings([corners]))
    if kind == "circle":
        centre, edge = np.array(numbers)
        angles = np.linspace(0, 2 * np.pi, _CIRCLE_CORNERS, endpoint=False)
        offsets = np.stack([np.cos(angles), np.sin(angles)], -1) * np.hypot(*(edge - centre))
        corners = (centre + offsets) / (size_hw[1], size_hw[0])
    return LabelledObject(
        label=row.text("label"), box_yxyx=box_of_rings([corners]), rings=(corners,)
    )
