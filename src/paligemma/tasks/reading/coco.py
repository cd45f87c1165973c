"""Reads annotations in COCO's format: pictures, boxes, outlines, and whole detection sets.

Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.metrics.extras import missing_extra
from paligemma.outputs.boxes import Box
from paligemma.outputs.rle import MAX_MASK_PIXELS, decode_rle, encode_rle
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.files import relative_name
from paligemma.tasks.reading.pictures import FilePicture, picture_in, require_folder_of

logger = logging.getLogger(__name__)

COCO_IMAGES = "images.cocodataset.org/zips"
MAX_CLASSES = 10_000
# COCO draws an outline point by point, however far beside the picture it runs.
_FARTHEST_PX = 1e6
# (x, y, width, height) in pixels.
BoxXYWH = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """A picture of an annotation file, and its size in pixels."""

    file_name: str
    width: int
    height: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """A picture and what is in it.

    Attributes:
        id: id of the picture in the file.
        image: file name and size.
        objects: objects in the order of the file, {"label", "bbox": [x, y, width, height] in
            pixels, "area", "iscrowd"}.
    """

    id: int
    image: CocoImage
    objects: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """One annotation file.

    Attributes:
        path: path of the file.
        classes: names of the classes in the order of their ids.
        category_ids: these ids.
        images: pictures in the order of their ids, which decides between equal confidences in
            COCO's scorer.
    """

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[LabelledImage, ...]


def coco_image(row: FileRow) -> CocoImage:
    """Read a row of "images".

    Raises:
        DataError: a field is missing, or the size is not positive.
    """
    image = CocoImage(
        file_name=row.text("file_name"), width=row.integer("width"), height=row.integer("height")
    )
    if image.width < 1 or image.height < 1 or image.width * image.height > MAX_MASK_PIXELS:
        raise row.error(
            f"a picture has 1 to {MAX_MASK_PIXELS} pixels, got {image.width}x{image.height}"
        )
    return image


def coco_box(row: FileRow) -> BoxXYWH:
    """Read the field "bbox": (x, y, width, height) in pixels.

    Raises:
        DataError: missing, or not four finite numbers.
    """
    found = row.fields.get("bbox")
    numbers = found if isinstance(found, list) and len(found) == 4 else []
    is_plain = [isinstance(n, int | float) and abs(n) < 1e9 for n in numbers]
    if len(is_plain) != 4 or not all(is_plain):
        raise row.error(f"bbox must be [x, y, width, height] in pixels, got {found!r:.80}")
    x, y, width, height = (float(n) for n in numbers)
    return x, y, width, height


def normalised(bbox: BoxXYWH, image: CocoImage) -> Box:
    """Turn (x, y, width, height) in pixels into (ymin, xmin, ymax, xmax) in [0, 1]."""
    x, y, width, height = bbox
    return (
        y / image.height,
        x / image.width,
        (y + height) / image.height,
        (x + width) / image.width,
    )


def run_lengths(segmentation: Any, image: CocoImage, where: str) -> dict[str, Any]:
    """Encode an outline, drawn as COCO draws it, as COCO's compressed run lengths.

    Args:
        segmentation: list of polygons [x, y, x, y, ...], or run lengths, compressed or not.
        image: picture that the outline lies on.
        where: place of the outline, for errors.

    Raises:
        DataError: neither, or of another size than the picture.
        MissingExtraError: polygons, without pycocotools.
    """
    size = [image.height, image.width]
    if isinstance(segmentation, Mapping):
        found = encode_rle(decode_rle(segmentation))
        if found["size"] != size:
            raise DataError(f"{where}: a mask of {found['size']} lies on a picture of {size}")
        return found
    try:
        rings = polygon_rings(segmentation)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: segmentation must be polygons or run lengths, got {segmentation!r:.80}"
        ) from error
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise missing_extra("pycocotools", "eval", "drawing COCO's outlines") from error
    merged = coco_mask.merge(coco_mask.frPyObjects(rings, *size))
    return {"size": size, "counts": merged["counts"].decode("ascii")}


def read_detection_set(path: Path) -> DetectionSet:
    """Read all pictures of an annotation file, without outlines; see `kept_classes`.

    Raises:
        DataError: a field is missing or wrong, or refers to what is not there.
    """
    images: dict[int, CocoImage] = {}
    rows: list[tuple[int, int, dict[str, Any]]] = []
    classes: dict[int, dict[str, Any]] = {}
    seen: set[int] = set()
    num_repeated = 0
    for name, fields in stream_lists(path, ("images", "annotations", "categories")):
        key = FileRow(fields, f"{path}, {name}").integer("id")
        row = FileRow(fields, f"{path}, {name}, id {key}")
        if name == "images":
            images[key] = coco_image(row)
        elif name == "categories":
            row.text("name")
            classes[key] = fields
        else:
            rows.append(_object(row))
            num_repeated += key in seen
            seen.add(key)
    if num_repeated or 0 in seen:
        logger.warning(
            "%s: %d annotations repeat an id, and %s has the id 0; all count here, where "
            "pycocotools loses some of them",
            path,
            num_repeated,
            "one" if 0 in seen else "none",
        )
    used = {category for _, category, _ in rows}
    kept = kept_classes(path, classes, used)
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
        category_ids=tuple(kept),
        images=tuple(
            LabelledImage(id=key, image=images[key], objects=tuple(objects[key]))
            for key in sorted(images)
        ),
    )


def kept_classes(
    path: Path, classes: Mapping[int, Mapping[str, Any]], used: Collection[int]
) -> dict[int, str]:
    """Names of the classes of a file by id, in the order of the ids.

    A class without objects whose name is the group of other classes, as Roboflow writes one in
    front, is left out.

    Args:
        classes: rows of "categories" by id.
        used: ids that objects name.

    Raises:
        DataError: too many, or two of one name.
    """
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
    return kept


def picture_paths(
    found: DetectionSet, folders: Sequence[Path]
) -> Iterator[tuple[LabelledImage, FilePicture]]:
    """Pair every picture with its file, in the first folder that holds the first picture.

    Raises:
        DataError: a file name leaves the folder, or there is no picture.
    """
    if not found.images:
        raise DataError(f"{found.path} must hold at least one image, got none")
    where = f"{found.path}: file_name"
    names = [relative_name(one.image.file_name, where) for one in found.images]
    folder = require_folder_of(folders, names[0], f"{found.path}")
    for one, name in zip(found.images, names, strict=True):
        yield one, picture_in(folder, name, size_hw=one.image.size_hw)


def _object(row: FileRow) -> tuple[int, int, dict[str, Any]]:
    """(image, category, box with area and crowd mark)."""
    x, y, width, height = coco_box(row)
    if width < 0 or height < 0:
        raise row.error(f"a box has a width and a height, got {width:g} and {height:g}")
    found = {
        "bbox": [x, y, width, height],
        "area": row.value("area", float) if "area" in row else width * height,
        "iscrowd": row.integer("iscrowd") if "iscrowd" in row else 0,
    }
    return row.integer("image_id"), row.integer("category_id"), found


def polygon_rings(rings: Any) -> list[list[float]]:
    numbers = [[float(n) for n in ring] for ring in rings]
    if not numbers or any(len(ring) < 6 or len(ring) % 2 for ring in numbers):
        raise ValueError("a polygon has at least three corners")
    if any(not abs(n) < _FARTHEST_PX for ring in numbers for n in ring):
        raise ValueError("a corner is no place in a picture")
    return numbers
