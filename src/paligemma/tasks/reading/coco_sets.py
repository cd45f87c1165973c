"""Reads detection sets in COCO's format: a picture with all its boxes at a time.

Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from paligemma.errors import DataError
from paligemma.tasks.grounding.refer_files import CocoImage, coco_box, coco_image
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.files import value

MAX_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """A picture and what is in it.

    Attributes:
        id: as in the file.
        image: name and size.
        objects: {"label", "bbox": [x, y, width, height] in pixels, "area", "iscrowd"}, in the
            order of the file.
    """

    id: int
    image: CocoImage
    objects: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """One annotation file.

    Attributes:
        path: of the file.
        classes: names in the order of their ids.
        images: in the order of their ids, which decides between equal confidences in COCO's scorer.
    """

    path: Path
    classes: tuple[str, ...]
    images: tuple[LabelledImage, ...]


def read_detection_set(path: Path) -> DetectionSet:
    """All pictures of an annotation file; outlines are passed over.

    A class without objects whose name is the group of other classes, as Roboflow writes one in
    front, is left out.

    Raises:
        DataError: a field is missing or wrong, or refers to what is not there.
    """
    images: dict[int, CocoImage] = {}
    rows: list[tuple[int, int, dict[str, Any]]] = []
    classes: dict[int, dict[str, Any]] = {}
    for name, row in stream_lists(path, ("images", "annotations", "categories")):
        key = value(row, "id", int, f"{path}, {name}")
        where = f"{path}, {name}, id {key}"
        if name == "images":
            images[key] = coco_image(row, where)
        elif name == "categories":
            value(row, "name", str, where)
            classes[key] = row
        else:
            rows.append(_object(row, where))
    used = {category for _, category, _ in rows}
    groups = {row.get("supercategory") for row in classes.values()}
    kept = {
        key: row["name"]
        for key, row in sorted(classes.items())
        if key in used or row["name"] not in groups or row["name"] == row.get("supercategory")
    }
    if len(kept) > MAX_CLASSES or len(set(kept.values())) != len(kept):
        raise DataError(
            f"{path} must have at most {MAX_CLASSES} categories of different names, got {len(kept)}"
        )
    objects: dict[int, list[dict[str, Any]]] = {key: [] for key in images}
    for image_id, category, one in rows:
        if image_id not in objects or category not in kept:
            raise DataError(
                f"{path}: an annotation names image {image_id} and category {category}, which must "
                "both be in the file; it is incomplete"
            )
        objects[image_id].append({"label": kept[category], "category_id": category, **one})
    return DetectionSet(
        path=path,
        classes=tuple(kept.values()),
        images=tuple(
            LabelledImage(id=key, image=images[key], objects=tuple(objects[key]))
            for key in sorted(images)
        ),
    )


def _object(row: dict[str, Any], where: str) -> tuple[int, int, dict[str, Any]]:
    """(image, category, box with area and crowd mark)."""
    x, y, width, height = coco_box(row, where)
    if width < 0 or height < 0:
        raise DataError(f"{where}: a box has a width and a height, got {width:g} and {height:g}")
    area = value(row, "area", float, where) if "area" in row else width * height
    iscrowd = value(row, "iscrowd", int, where) if "iscrowd" in row else 0
    found = {"bbox": [x, y, width, height], "area": area, "iscrowd": iscrowd}
    return value(row, "image_id", int, where), value(row, "category_id", int, where), found


def pictures_of(
    found: DetectionSet, folders: Sequence[Path]
) -> Iterator[tuple[LabelledImage, Path]]:
    """Every picture with its file, in the first folder that holds the first of them.

    Raises:
        DataError: a file name leaves the folder, or there is no picture.
    """
    if not found.images:
        raise DataError(f"{found.path} must hold at least one image, got none")
    first = _relative(found.images[0].image.file_name, found.path)
    folder = next((one for one in folders if (one / first).is_file()), None)
    if folder is None:
        places = ", ".join(str(one) for one in folders)
        raise DataError(
            f"{first}, the first picture of {found.path}, must lie in one of {places}; unpack the "
            "pictures there"
        )
    for one in found.images:
        yield one, folder / _relative(one.image.file_name, found.path)


def _relative(file_name: str, path: Path) -> PurePosixPath:
    name = PurePosixPath(file_name)
    if name.is_absolute() or ".." in name.parts or not name.name or "\\" in file_name:
        raise DataError(
            f"{path}: file_name must name a file below the folder of pictures, got {file_name!r}"
        )
    return name
