"""COCO's annotation files: objects with boxes and outlines, or captions.

Roboflow's `_annotations.coco.json` and the exports of CVAT and Label Studio have the same layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.processing.prompts import caption_prompt
from paligemma.tasks.own.columns import filled
from paligemma.tasks.own.found import Found, OwnForm, split_names
from paligemma.tasks.own.json_lines import row_example
from paligemma.tasks.own.labels import (
    Finding,
    LabelledObject,
    LabelledPicture,
    OwnRow,
    RowError,
    UprightPicture,
    labelled_rows,
)
from paligemma.tasks.reading.coco import (
    CocoId,
    CocoImage,
    by_id,
    coco_box,
    coco_id,
    coco_image,
    kept_classes,
    normalised,
    polygon_rings,
)
from paligemma.tasks.reading.coco_stream import is_coco_file, stream_lists
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.pictures import NamedPictures

NAME = "COCO"
LOOKS_FOR = (
    "train/_annotations.coco.json or annotations/instances_train.json or captions_train.json"
)
_PATTERNS = (
    "{}/_annotations.coco.json",
    "annotations/instances_{}.json",
    "annotations/instances_{}2017.json",
    "instances_{}.json",
    "instances_{}2017.json",
    "annotations/captions_{}.json",
    "annotations/captions_{}2017.json",
    "annotations/captions_{}2014.json",
    "captions_{}.json",
    "annotations/{}.json",
    "{}.json",
)


def find(data: Path, split: str, form: OwnForm) -> Found | None:
    """Find the file of a split; a file, or the only one of a folder, is `train`."""
    paths = [data]
    if not data.is_file():
        paths = [data / place.format(name) for place in _PATTERNS for name in split_names(split)]
        if split == "train" and not any(map(is_coco_file, paths)):
            every = [*data.glob("*.json"), *data.glob("annotations/*.json")]
            others = [data / p.format(n) for p in _PATTERNS for n in split_names("valid", "test")]
            paths = [path for path in sorted(every) if path not in others and is_coco_file(path)]
            paths = paths if len(paths) == 1 else []
    path = next(filter(is_coco_file, paths), None)
    if path is None:
        return None
    root = path.parent if data.is_file() else data
    return Found(format=NAME, path=path, rows=partial(_rows, path, root, split, form))


def _rows(path: Path, root: Path, split: str, form: OwnForm) -> Iterator[OwnRow]:
    """Read a file; one bad row loses its picture and no other.

    Raises:
        DataError: the file cannot be read to its end, or has no images.
    """
    images: dict[CocoId, CocoImage | RowError] = {}
    classes: dict[CocoId, dict[str, Any]] = {}
    marked: dict[CocoId, list[dict[str, Any]]] = {}
    for name, fields in stream_lists(path, ("images", "annotations", "categories"), optional=True):
        if name == "annotations":
            marked.setdefault(_key(fields, "image_id"), []).append(_compact(fields))
            continue
        key = _key(fields, "id")
        row = FileRow(fields, f"{path}, {name}, id {fields.get('id')!r:.40}")
        if name == "categories":
            classes[coco_id(row, "id")] = {**fields, "name": row.text("name")}
            continue
        try:
            coco_id(row, "id")
            images[key] = coco_image(row, sized=False)
        except DataError as error:
            images[key] = RowError("row", str(error))
    if not images:
        raise DataError(f"{path} must hold at least one image, got none")
    names = [one.file_name for one in images.values() if isinstance(one, CocoImage)]
    found = [root / split_name for split_name in split_names(split)]
    folders = [path.parent, *found, *(root / "images" / one.name for one in found), root / "images"]
    folders += [root / f"{name}{year}" for name in split_names(split) for year in (2017, 2014)]
    folders.append(root)
    source = _File(path, folders, names[0] if names else "")
    for key in sorted(marked.keys() - images.keys(), key=by_id):
        yield RowError(
            "row", f"{path}: {len(marked[key])} annotations name the image {key}, which is not in "
            "the file; it is incomplete",
        )  # fmt: skip
    listed = sorted(images.items(), key=lambda one: by_id(one[0]))
    annotations = [one for rows in marked.values() for one in rows]
    if annotations and all("caption" in one for one in annotations):
        for key, image in listed:
            yield from source.captions(key, image, marked.get(key, []), form)
        return
    used = {_key(one, "category_id") for one in annotations}
    kept = kept_classes(path, classes, used)
    pictures = (source.picture(key, image, marked.get(key, []), kept) for key, image in listed)
    yield from labelled_rows(pictures, tuple(dict.fromkeys(kept.values())), masks=form.masks)


def _key(fields: Mapping[str, Any], name: str) -> CocoId:
    """An id, or -1, which no row has, where there is none."""
    try:
        return coco_id(FileRow(fields, ""), name)
    except DataError:
        return -1


def _compact(fields: dict[str, Any]) -> dict[str, Any]:
    """An annotation whose outlines take little memory, or are left for `_object` to refuse."""
    rings = fields.get("segmentation")
    if not isinstance(rings, list):
        return fields
    try:
        outlines = [np.array(ring).reshape(-1, 2) for ring in polygon_rings(rings)] if rings else []
    except (TypeError, ValueError):
        return fields
    return {**fields, "segmentation": tuple(outlines)}


class _File:
    """An annotation file and the folder of its pictures."""

    def __init__(self, path: Path, folders: list[Path], first: str) -> None:
        self._path = path
        self._named = NamedPictures(folders, first, f"{path}: file_name", otherwise=path.parent)

    def _upright(self, image: CocoImage, where: str) -> UprightPicture:
        folder = self._named.folder
        name = self._named.name_of(image.file_name, f"{where}, file_name")
        size_hw = image.size_hw if image.height else None
        return UprightPicture(path=folder / name, folder=folder, size_hw=size_hw)

    def captions(
        self, key: CocoId, image: CocoImage | RowError, rows: list[dict[str, Any]], form: OwnForm
    ) -> Iterator[OwnRow]:
        """One example a picture, whose captions are its answers: one is drawn at each visit."""
        where = f"{self._path}, image {key}"
        if isinstance(image, RowError):
            yield image
            return
        try:
            if not rows:
                raise RowError("no answer", f"{where}: it has no caption; remove it or add one")
            found = [FileRow(row, where) for row in rows]
            texts = [filled(form.suffix or "{caption}", row).strip() for row in found]
            prefix = caption_prompt(form.language)
            if form.prefix:
                prefix = filled(form.prefix, found[0])
            yield row_example(
                FileRow({}, where),
                f"{self._path.stem}/{key}",
                (self._upright(image, where),),
                prefix,
                *texts,
            )
        except RowError as error:
            yield error
        except DataError as error:
            yield RowError("row", str(error))

    def picture(
        self,
        key: CocoId,
        image: CocoImage | RowError,
        rows: list[dict[str, Any]],
        classes: Mapping[CocoId, str],
    ) -> LabelledPicture | DataError:
        """A picture with its objects; crowds, which are no objects, are left out with a note."""
        where = f"{self._path}, image {key}"
        if isinstance(image, RowError):
            return image
        try:
            crowds = [row for row in rows if row.get("iscrowd") == 1]
            notes = (
                [Finding(rule="crowd", said=f"{where}: {len(crowds)} crowds are left out")]
                if crowds
                else []
            )
            picture = self._upright(image, where)
            image = image.measured(picture.find)
            return LabelledPicture(
                id=f"{self._path.stem}/{key}",
                where=f"{where} ({image.file_name[:100]})",
                picture=replace(picture, size_hw=image.size_hw),
                objects=tuple(
                    _object(FileRow(row, f"{where}, annotation {row.get('id')}"), image, classes)
                    for row in rows
                    if row.get("iscrowd") != 1
                ),
                size_hw=image.size_hw,
                notes=tuple(notes),
            )
        except DataError as error:
            return error if isinstance(error, RowError) else RowError("row", str(error))


def _object(row: FileRow, image: CocoImage, classes: Mapping[CocoId, str]) -> LabelledObject:
    category = coco_id(row, "category_id")
    if category not in classes:
        raise row.error(f"category_id must be one of {len(classes)} categories, got {category}")
    outline = row.fields.get("segmentation")
    if outline is not None and not isinstance(outline, tuple | dict):
        raise row.error(
            f"segmentation must be polygons or run lengths, got {outline!r:.80}; correct it"
        )
    if isinstance(outline, dict) and outline.get("size") != list(image.size_hw):
        raise row.error(
            f"run lengths must have the size {list(image.size_hw)} of the picture, got "
            f"{outline.get('size')!r:.40}"
        )
    return LabelledObject(
        label=classes[category],
        box_yxyx=normalised(coco_box(row), image),
        rings=tuple(ring / (image.width, image.height) for ring in outline)
        if isinstance(outline, tuple)
        else (),
        rle=outline if isinstance(outline, dict) else None,
    )
