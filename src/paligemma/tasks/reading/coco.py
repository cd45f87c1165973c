"""Reads annotations in COCO's format: pictures, boxes, outlines, and whole detection sets.

Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paligemma.errors import DataError, ImageError
from paligemma.metrics.extras import missing_extra
from paligemma.outputs.boxes import Box
from paligemma.outputs.rle import MAX_MASK_PIXELS, decode_rle, encode_rle
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.file_rows import FileRow, whole_number
from paligemma.tasks.reading.pictures import FilePicture, NamedPictures, picture_in

logger = logging.getLogger(__name__)

COCO_IMAGES = "images.cocodataset.org/zips"
MAX_CLASSES = 10_000
# COCO draws an outline point by point, however far beside the picture it runs.
_FARTHEST_PX = 1e6
_NUM_NAMED = 5
# (x, y, width, height) in pixels.
BoxXYWH = tuple[float, float, float, float]
# Of an image or a category: COCO's are numbers, exports have names too.
CocoId = int | str


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """A picture of an annotation file, and its size in pixels, 0x0 where the file states none."""

    file_name: str
    width: int
    height: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def measured(self, find: Callable[[], Path]) -> CocoImage:
        """The picture with a size: where none is stated that of its file, upright.

        Raises:
            DataError: there is no such file, or it is no picture.
        """
        from paligemma.processing.image import picture_sizes_hw

        if self.height:
            return self
        try:
            height, width = picture_sizes_hw(find())[0]
        except ImageError as error:
            raise DataError(
                f"{self.file_name[:200]} has no width and height, so its picture must tell: {error}"
            ) from error
        return replace(self, width=width, height=height)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """A picture and what is in it.

    Attributes:
        id: id of the picture in the file.
        image: file name and size.
        objects: objects in the order of the file, {"label", "bbox": [x, y, width, height] in
            pixels, "area", "iscrowd"}.
    """

    id: CocoId
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
    category_ids: tuple[CocoId, ...]
    images: tuple[LabelledImage, ...]


def coco_id(row: FileRow, name: str) -> CocoId:
    """Read an id: a whole number, also as text, or other text.

    Raises:
        DataError: missing, or neither.
    """
    found = row.fields.get(name)
    number = whole_number(found) if isinstance(found, str) else None
    is_name = isinstance(found, str) and (number is None or str(number) != found)
    return row.text(name) if is_name and found else row.integer(name)


def by_id(key: CocoId) -> tuple[bool, CocoId]:
    """Sort numbers before names."""
    return isinstance(key, str), key


def coco_image(row: FileRow, *, sized: bool = True) -> CocoImage:
    """Read a row of "images".

    Args:
        sized: refuse a picture without a size, which programs write as -1, 0, null or nothing.

    Raises:
        DataError: a field is missing, or the size is not positive.
    """
    name = row.text("file_name")
    sides = [_given(row, side) for side in ("width", "height")]
    if not sized and all(
        one is None or (isinstance(one, int | float) and one <= 0) for one in sides
    ):
        return CocoImage(file_name=name, width=0, height=0)
    image = CocoImage(file_name=name, width=row.integer("width"), height=row.integer("height"))
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
    images: dict[CocoId, CocoImage] = {}
    rows: list[tuple[CocoId, CocoId, dict[str, Any]]] = []
    classes: dict[CocoId, dict[str, Any]] = {}
    seen: set[CocoId] = set()
    num_repeated = 0
    for name, fields in stream_lists(path, ("images", "annotations", "categories")):
        is_bare = name == "annotations" and fields.get("id") is None
        key = "none" if is_bare else coco_id(FileRow(fields, f"{path}, {name}"), "id")
        row = FileRow(fields, f"{path}, {name}, id {key}")
        if name == "images":
            images[key] = coco_image(row, sized=False)
        elif name == "categories":
            row.text("name")
            classes[key] = fields
        else:
            rows.append(_object(row))
            num_repeated += key in seen and not is_bare
            seen.add(key)
    odd = [f"{num_repeated:,} annotations repeat an id"] if num_repeated else []
    odd += ["an annotation has the id 0"] if 0 in seen else []
    if odd:
        logger.warning(
            "%s: %s; all annotations count here, where pycocotools loses some and scores less",
            path,
            " and ".join(odd),
        )
    used = {category for _, category, _ in rows}
    kept = kept_classes(path, classes, used)
    objects: dict[CocoId, list[dict[str, Any]]] = {key: [] for key in images}
    for image_id, category, one in rows:
        if image_id not in objects or category not in kept:
            raise DataError(
                f"{path}: an annotation names image {image_id} and category {category}, which must "
                "both be in the file; it is incomplete"
            )
        objects[image_id].append({"label": kept[category], "category_id": category, **one})
    first = {name: key for key, name in reversed(kept.items())}  # of a name that is repeated
    classes_of = {key: name for key, name in kept.items() if first[name] == key}
    return DetectionSet(
        path=path,
        classes=tuple(classes_of.values()),
        category_ids=tuple(classes_of),
        images=tuple(
            LabelledImage(id=key, image=images[key], objects=tuple(objects[key]))
            for key in sorted(images, key=by_id)
        ),
    )


def kept_classes(
    path: Path, classes: Mapping[CocoId, Mapping[str, Any]], used: Collection[CocoId]
) -> dict[CocoId, str]:
    """Names of the classes of a file by id, in the order of the ids.

    A class without objects whose name is the group of other classes, as Roboflow writes one in
    front, is left out. Categories of one name are one class, and a warning says so.

    Args:
        classes: rows of "categories" by id.
        used: ids that objects name.

    Raises:
        DataError: too many.
    """
    stated = (row.get("supercategory") for row in classes.values())
    groups = {one for one in stated if isinstance(one, str)}
    kept = {
        key: row["name"]
        for key, row in sorted(classes.items(), key=lambda one: by_id(one[0]))
        if key in used or row["name"] not in groups or row["name"] == row.get("supercategory")
    }
    if len(kept) > MAX_CLASSES:
        raise DataError(f"{path} must have at most {MAX_CLASSES} categories, got {len(kept)}")
    for name in [one for one, times in Counter(kept.values()).items() if times > 1][:_NUM_NAMED]:
        logger.warning(
            "%s: the categories %s are all named %r and count as one class, where pycocotools "
            "keeps them apart; give them different names if they are different",
            path,
            ", ".join(str(key) for key, other in kept.items() if other == name),
            name[:80],
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
    named = NamedPictures(folders, found.images[0].image.file_name, where)
    names = [named.name_of(one.image.file_name, where) for one in found.images]
    for one, name in zip(found.images, names, strict=True):
        picture = picture_in(named.folder, name)
        image = one.image.measured(picture.find)
        yield replace(one, image=image), replace(picture, size_hw=image.size_hw)


def _given(row: FileRow, name: str) -> Any:
    """The value of a field; None where it is null, NaN or not there."""
    found = row.fields.get(name)
    return None if isinstance(found, float) and math.isnan(found) else found


def is_crowd(row: FileRow) -> bool:
    """Read the field "iscrowd": 0 or 1, false or true; null or nothing is 0.

    Raises:
        DataError: another value.
    """
    found = _given(row, "iscrowd")
    return found if isinstance(found, bool) else found is not None and row.integer("iscrowd") != 0


def _object(row: FileRow) -> tuple[CocoId, CocoId, dict[str, Any]]:
    """(image, category, box with area and crowd mark)."""
    x, y, width, height = coco_box(row)
    if width < 0 or height < 0:
        raise row.error(f"a box has a width and a height, got {width:g} and {height:g}")
    found = {
        "bbox": [x, y, width, height],
        "area": width * height if _given(row, "area") is None else row.value("area", float),
        "iscrowd": int(is_crowd(row)),
    }
    return coco_id(row, "image_id"), coco_id(row, "category_id"), found


def polygon_rings(rings: Any) -> list[list[float]]:
    try:
        numbers = [[float(n) for n in ring] for ring in rings]
    except OverflowError as error:
        raise ValueError("a corner is no place in a picture") from error
    if not numbers or any(len(ring) < 6 or len(ring) % 2 for ring in numbers):
        raise ValueError("a polygon has at least three corners")
    if any(not abs(n) < _FARTHEST_PX for ring in numbers for n in ring):
        raise ValueError("a corner is no place in a picture")
    return numbers
