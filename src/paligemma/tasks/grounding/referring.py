"""Reads RefCOCO, RefCOCO+ and RefCOCOg: sentences of one file, outlines of another.

Source: github.com/lichengunc/refer; the split names follow big_vision's
`configs/proj/paligemma/transfers/refcoco_seg.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.reading.coco import (
    BoxXYWH,
    CocoImage,
    coco_box,
    coco_image,
    normalised,
    run_lengths,
)
from paligemma.tasks.reading.coco_stream import stream_lists
from paligemma.tasks.reading.examples import SourceRow, example_of, texts_in
from paligemma.tasks.reading.file_rows import FileRow, list_rows
from paligemma.tasks.reading.files import find_file, read_json
from paligemma.tasks.reading.parquet import ParquetPicture
from paligemma.tasks.reading.pictures import folder_of, picture_in
from paligemma.tasks.reading.plain_pickle import read_plain_pickle

REFER = (
    "github.com/lichengunc/refer (refcoco.zip, refcoco+.zip, refcocog.zip); a JSON copy of the "
    "pickle, same name with .json, is read as well"
)
COCO_TRAIN = "cocodataset.org (COCO 2017 or 2014, training set)"
# The three training splits together, without any picture that a val or test split shows.
COMBINED = "train-combined"
# Folder -> author of the split that is reported.
SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
SPLITS = {
    "refcoco": ("val", "testA", "testB", "train"),
    "refcoco+": ("val", "testA", "testB", "train"),
    "refcocog": ("val", "test", "train"),
}
# In names of pictures, as in COCO_train2014_000000581857_16.jpg.
_PICTURE_NUMBER = re.compile(r"\d{12}")
_FOLDERS = (
    *("train2017", "images/train2017", "train2014", "images/train2014"),
    *("images/mscoco/images/train2014", "images"),
)
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
        sentences: (sent_id, sentence) of each description.
    """

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class CocoObject:
    """An outlined object.

    Attributes:
        segmentation: polygons, or run lengths.
    """

    image_id: int
    bbox: BoxXYWH
    segmentation: Any


def read_refer(data: Path, split: str, *, dataset: str) -> Iterator[Example]:
    """Read one example a sentence; sentences on one picture are one unit.

    Args:
        data: folder with `refcoco/refs(unc).p` and so on, COCO's instances and its pictures.
        split: one of SPLITS, or "train-combined".
    """
    if split == COMBINED:
        yield from _read_combined(data)
        return
    refs = [ref for ref in read_refs(data, dataset) if ref.split == split]
    yield from _examples(data, dataset, refs)


def _read_combined(data: Path) -> Iterator[Example]:
    """Read the training set of the recipe: 24,407 pictures."""
    every = {dataset: read_refs(data, dataset) for dataset in SPLITS}
    held_out = {ref.image_id for refs in every.values() for ref in refs if ref.split != "train"}
    for dataset, refs in every.items():
        kept = [ref for ref in refs if ref.split == "train" and ref.image_id not in held_out]
        yield from _examples(data, dataset, kept, is_combined=True)


def _examples(
    data: Path, dataset: str, refs: list[Ref], *, is_combined: bool = False
) -> Iterator[Example]:
    if not refs:
        raise DataError(f"{dataset} has no described object in this split; check its refs file")
    outlines = Outlines(data, dataset, refs)
    names = _names(refs[0], outlines.of(refs[0])[0])
    folder = find_file(data, *_FOLDERS, source=COCO_TRAIN)
    folder = folder_of([data / one for one in _FOLDERS], *names) or folder
    for ref in refs:
        image, found = outlines.of(ref)
        where = f"{outlines.path}, annotation {ref.ann_id}"
        picture = picture_in(folder, *_names(ref, image), size_hw=image.size_hw)
        references = {
            "box_yxyx": list(normalised(found.bbox, image)),
            "mask": run_lengths(found.segmentation, image, where),
            "ann_id": ref.ann_id,
        }
        for sent_id, sentence in ref.sentences:
            name = f"{ref.ref_id}-{sent_id}"
            yield example_of(
                f"{dataset}/{name}" if is_combined else name,
                sentence,
                picture=picture,
                answers=[],
                references=references,
                slices={"dataset": dataset} if is_combined else {},
                unit=str(ref.image_id),
            )


def refer_examples(rows: Iterator[SourceRow], data: Path, split: str) -> Iterator[Example]:
    """Make the examples of a copy, whose rows are objects with all their sentences."""
    for row, picture in rows:
        assert isinstance(picture, ParquetPicture)
        height, width = picture.stored_size_hw()
        name = row.text("file_name") if "file_name" in row else ""
        image = CocoImage(file_name=name, width=width, height=height)
        outline = row.any("segmentation")
        if isinstance(outline, list) and outline and not isinstance(outline[0], list):
            outline = [outline]  # copies keep one polygon, and leave out the list around it
        references = {
            "box_yxyx": list(normalised(coco_box(row), image)),
            "mask": run_lengths(outline, image, row.where),
            "ann_id": row.identifier("question_id"),
        }
        number = _PICTURE_NUMBER.search(name)
        for place, sentence in enumerate(texts_in(row, "sentences", "sent")):
            yield example_of(
                f"{row.identifier('question_id')}-{row.number}-{place}",
                sentence,
                picture=picture,
                answers=[],
                references=references,
                unit=str(int(number[0])) if number else None,
            )


def _names(ref: Ref, image: CocoImage) -> tuple[str, str, str]:
    """Pictures carry the names of 2017 or of 2014."""
    number = f"{ref.image_id:012d}.jpg"
    return number, f"COCO_train2014_{number}", Path(image.file_name).name


def read_refs(data: Path, dataset: str) -> list[Ref]:
    """Read the described objects of a data set, in the order of its file.

    Raises:
        DataError: the file or a field is missing, or the file holds more than plain data.
    """
    stem = refs_file(dataset)
    path = find_file(data, f"{stem}.p", f"{stem}.json", source=REFER)
    rows = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    return [
        Ref(
            ref_id=row.integer("ref_id"),
            ann_id=row.integer("ann_id"),
            image_id=row.integer("image_id"),
            split=row.text("split"),
            sentences=tuple(
                (one.integer("sent_id"), one.text("sent")) for one in row.objects("sentences")
            ),
        )
        for row in list_rows(rows, path)
    ]


def refs_file(dataset: str) -> str:
    """Return the path of the file of sentences below the data folder, without its ending."""
    return f"{dataset}/refs({SPLIT_BY[dataset]})"


class Outlines:
    """The pictures and objects of the annotation file that some refs describe.

    Args:
        dataset: data set, whose own `instances.json` is read where COCO's file is missing.

    Raises:
        DataError: no annotation file, or an object is not in it.
    """

    def __init__(self, data: Path, dataset: str, refs: list[Ref]) -> None:
        self.path = find_file(data, *_INSTANCES, f"{dataset}/instances.json", source=COCO_TRAIN)
        wanted, pictures = {ref.ann_id for ref in refs}, {ref.image_id for ref in refs}
        self._images: dict[int, CocoImage] = {}
        self._objects: dict[int, CocoObject] = {}
        for name, fields in stream_lists(self.path, ("images", "annotations")):
            key = FileRow(fields, f"{self.path}, {name}").integer("id")
            row = FileRow(fields, f"{self.path}, {name}, id {key}")
            if name == "images" and key in pictures:
                self._images[key] = coco_image(row)
            elif name == "annotations" and key in wanted:
                self._objects[key] = CocoObject(
                    image_id=row.integer("image_id"),
                    bbox=coco_box(row),
                    segmentation=fields.get("segmentation"),
                )

    def of(self, ref: Ref) -> tuple[CocoImage, CocoObject]:
        """Return the picture and the object that a ref describes."""
        found = self._objects.get(ref.ann_id)
        image = self._images.get(ref.image_id)
        if found is None or image is None or found.image_id != ref.image_id:
            missing = f"annotation {ref.ann_id} on image {ref.image_id}"
            raise DataError(
                f"{self.path} lacks {missing}, which ref {ref.ref_id} describes; take the "
                "instances of COCO's training set"
            )
        return image, found
