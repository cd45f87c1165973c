"""Reads RefCOCO, RefCOCO+ and RefCOCOg: sentences of one file, outlines of another.

Source: github.com/lichengunc/refer; the split names follow big_vision's
`configs/proj/paligemma/transfers/refcoco_seg.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.metrics.extras import missing_extra
from paligemma.outputs.boxes import Box
from paligemma.outputs.rle import decode_rle, encode_rle
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.files import find_file, read_json, value
from paligemma.tasks.reading.plain_pickle import read_plain_pickle

REFER = (
    "github.com/lichengunc/refer (refcoco.zip, refcoco+.zip, refcocog.zip); a JSON copy of the "
    "pickle, same name with .json, is read as well"
)
COCO = "cocodataset.org (COCO 2017 or 2014, training set)"
# Folder -> author of the split that is reported.
SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
SPLITS = {
    "refcoco": ("val", "testA", "testB", "train"),
    "refcoco+": ("val", "testA", "testB", "train"),
    "refcocog": ("val", "test", "train"),
}
_INSTANCES = (
    "instances_train2017.json",
    "annotations/instances_train2017.json",
    "instances_train2014.json",
    "annotations/instances_train2014.json",
)


@dataclass(frozen=True, kw_only=True)
class Ref:
    """One object that people described.

    Attributes:
        ref_id, ann_id, image_id: as in the files.
        split: "train", "val", "test", "testA" or "testB".
        sentences: (sent_id, sentence).
    """

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """A picture of an annotation file."""

    file_name: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class CocoObject:
    """An outlined object.

    Attributes:
        bbox: (x, y, width, height) in pixels.
        segmentation: polygons, or run lengths.
    """

    image_id: int
    bbox: tuple[float, float, float, float]
    segmentation: Any


def read_refs(data: Path, dataset: str) -> list[Ref]:
    """The described objects of a data set, in the order of its file.

    Raises:
        DataError: the file is missing, no plain data, or a field is.
    """
    stem = f"{dataset}/refs({SPLIT_BY[dataset]})"
    path = find_file(data, f"{stem}.p", f"{stem}.json", source=REFER)
    rows = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a list of objects, got {type(rows).__name__}")
    return [_ref(row, f"{path}, entry {number}") for number, row in enumerate(rows)]


def _ref(row: Any, where: str) -> Ref:
    if not isinstance(row, dict):
        raise DataError(f"{where} must be an object, got {row!r:.80}")
    sentences = value(row, "sentences", list, where)
    said = []
    for sentence in sentences:
        if not isinstance(sentence, dict):
            raise DataError(f"{where}: sentences must be objects, got {sentence!r:.80}")
        said.append((value(sentence, "sent_id", int, where), value(sentence, "sent", str, where)))
    return Ref(
        ref_id=value(row, "ref_id", int, where),
        ann_id=value(row, "ann_id", int, where),
        image_id=value(row, "image_id", int, where),
        split=value(row, "split", str, where),
        sentences=tuple(said),
    )


class Outlines:
    """Pictures and objects of the annotation file, those that are asked for.

    Args:
        data: folder.
        dataset: its own `instances.json` is read where COCO's file is missing.
        refs: the objects to keep.

    Raises:
        DataError: no annotation file, or an object is not in it.
    """

    def __init__(self, data: Path, dataset: str, refs: list[Ref]) -> None:
        self.path = find_file(data, *_INSTANCES, f"{dataset}/instances.json", source=COCO)
        wanted, pictures = {ref.ann_id for ref in refs}, {ref.image_id for ref in refs}
        self._images: dict[int, CocoImage] = {}
        self._objects: dict[int, CocoObject] = {}
        for name, row in stream_lists(self.path, ("images", "annotations")):
            where = f"{self.path}, {name}"
            key = value(row, "id", int, where)
            if name == "images" and key in pictures:
                self._images[key] = coco_image(row, where)
            elif name == "annotations" and key in wanted:
                self._objects[key] = CocoObject(
                    image_id=value(row, "image_id", int, where),
                    bbox=coco_box(row, f"{where}, id {key}"),
                    segmentation=row.get("segmentation"),
                )

    def of(self, ref: Ref) -> tuple[CocoImage, CocoObject]:
        """The picture and the object that a ref describes."""
        found = self._objects.get(ref.ann_id)
        image = self._images.get(ref.image_id)
        if found is None or image is None or found.image_id != ref.image_id:
            missing = f"annotation {ref.ann_id} on image {ref.image_id}"
            raise DataError(
                f"{self.path} lacks {missing}, which ref {ref.ref_id} describes; take the "
                "instances of COCO's training set"
            )
        return image, found


def coco_image(row: Mapping[str, Any], where: str) -> CocoImage:
    """A row of "images".

    Raises:
        DataError: a field is missing, or the size is not positive.
    """
    image = CocoImage(
        file_name=value(row, "file_name", str, where),
        width=value(row, "width", int, where),
        height=value(row, "height", int, where),
    )
    if image.width < 1 or image.height < 1:
        raise DataError(f"{where}: a picture has pixels, got {image.width}x{image.height}")
    return image


def coco_box(row: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    """The field "bbox": (x, y, width, height) in pixels.

    Raises:
        DataError: missing, or not four finite numbers.
    """
    found = row.get("bbox")
    numbers = found if isinstance(found, list) and len(found) == 4 else []
    is_plain = [isinstance(n, int | float) and abs(n) < 1e9 for n in numbers]
    if len(is_plain) != 4 or not all(is_plain):
        raise DataError(f"{where}: bbox must be [x, y, width, height] in pixels, got {found!r:.80}")
    x, y, width, height = (float(n) for n in numbers)
    return x, y, width, height


def normalised(bbox: tuple[float, float, float, float], image: CocoImage) -> Box:
    """(x, y, width, height) in pixels -> (ymin, xmin, ymax, xmax) in [0, 1]."""
    x, y, width, height = bbox
    return (
        y / image.height,
        x / image.width,
        (y + height) / image.height,
        (x + width) / image.width,
    )


def run_lengths(segmentation: Any, image: CocoImage, where: str) -> dict[str, Any]:
    """COCO's compressed run lengths of an outline, drawn as COCO draws it.

    Args:
        segmentation: list of polygons [x, y, x, y, ...], or run lengths, compressed or not.
        image: gives the size.
        where: for the error.

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
        rings = _polygons(segmentation)
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


def _polygons(rings: Any) -> list[list[float]]:
    numbers = [[float(n) for n in ring] for ring in rings]
    if not numbers or any(len(ring) < 6 or len(ring) % 2 for ring in numbers):
        raise ValueError("a polygon has at least three corners")
    if any(not abs(n) < 1e9 for ring in numbers for n in ring):
        raise ValueError("a corner is no place in a picture")
    return numbers


def said_in(refs: list[Ref], split: str) -> Iterator[tuple[Ref, int, str]]:
    """Every sentence of a split: (ref, sent_id, sentence)."""
    for ref in refs:
        if ref.split == split:
            for sent_id, sentence in ref.sentences:
                yield ref, sent_id, sentence
