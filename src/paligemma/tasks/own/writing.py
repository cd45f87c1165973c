"""Writes a user's labelled pictures in another format, with copies of the pictures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from paligemma.errors import ConfigError, DataError, ImageError
from paligemma.outputs.boxes import Box, format_detections
from paligemma.outputs.contours import one_ring
from paligemma.outputs.rle import encode_rle
from paligemma.processing.image import MAX_PIXELS
from paligemma.processing.prompts import object_prompt
from paligemma.tasks.own.files import recognise, splits_of
from paligemma.tasks.own.labels import LabelledObject, OwnExample, UprightPicture
from paligemma.tasks.own.masks import with_decoded_masks
from paligemma.whole_file import staging_folder

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec

WRITTEN = ("jsonl", "coco", "yolo", "voc")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion left.

    Attributes:
        num_rows: rows written, by split.
        skipped: sentences on rows that were left out.
    """

    num_rows: Mapping[str, int]
    skipped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row with its copied picture, below the folder of the pictures."""

    example: OwnExample
    names: tuple[str, ...]
    size_hw: tuple[int, int]

    @property
    def marked(self) -> list[tuple[LabelledObject, Box]]:
        """Objects with their boxes inside the picture."""
        boxes = [tuple(one["box_yxyx"]) for one in self.example.references["objects"]]
        return list(zip(self.example.objects, boxes, strict=True))


def convert(data: Path, form: str, output: Path, codec: MaskCodec | None = None) -> Converted:
    """Write every split of a set in another format; rows with errors are left out.

    Args:
        form: one of `WRITTEN`.
        output: folder that does not exist or is empty.
        codec: decodes codewords of answers to masks; without it they become boxes.

    Raises:
        ConfigError: something lies in the folder already, or it cannot be written.
        DataError: no format is recognised, or no row can be written.
    """
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(
            f"a set is written to a new folder, {output} is there already; name another"
        )
    skipped: list[str] = []
    num_rows: dict[str, int] = {}
    try:
        with staging_folder(output) as staging:
            rows = {
                split: _copied(data, split, form, staging, skipped, codec)
                for split in splits_of(data)
            }
            kept = {split: found for split, found in rows.items() if found}
            if not kept:
                raise DataError(
                    f"no row of {data} can be written as {form}"
                    + (f"; the first of {len(skipped)} faults: {skipped[0]}" if skipped else "")
                )
            classes = _classes([row for found in kept.values() for row in found])
            for split, found in kept.items():
                num_rows[split] = len(found)
                _WRITERS[form](staging, split, found, classes)
            if output.is_dir():
                output.rmdir()
            staging.rename(output)
    except OSError as error:
        raise ConfigError(
            f"a set needs a folder that can be written, got {output} "
            f"({error.strerror or error}); make room or name another"
        ) from error
    return Converted(num_rows=num_rows, skipped=tuple(skipped))


def _copied(
    data: Path,
    split: str,
    form: str,
    staging: Path,
    skipped: list[str],
    codec: MaskCodec | None,
) -> list[_Row]:
    """The rows of a split that the format can hold, their pictures copied."""
    folder = staging / {"jsonl": "images", "yolo": f"{split}/images"}.get(form, split)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    copied: dict[Any, tuple[str, tuple[int, int]]] = {}
    taken = {path.stem for path in folder.iterdir()}
    for row in recognise(data, split).rows():
        if isinstance(row, DataError):
            skipped.append(str(row))
            continue
        if form != "jsonl" and (object_prompt(row.prefix) is None or len(row.pictures) != 1):
            skipped.append(f"{row.where}: {form} holds pictures with objects, {row.prefix[:40]!r} "
                           "asks for words; write it as jsonl")  # fmt: skip
            continue
        try:
            for picture in row.pictures:
                # Several rows may ask about one picture; a label file has each but once.
                if picture not in copied or form != "jsonl":
                    copied[picture] = _copy(picture, folder, taken)
        except (ImageError, OSError) as error:
            skipped.append(f"{row.where}: {error}")
            continue
        names = tuple(copied[picture][0] for picture in row.pictures)
        size_hw = copied[row.pictures[0]][1]
        if codec is not None:
            row = with_decoded_masks(row, size_hw, codec)
        found.append(_Row(example=row, names=names, size_hw=size_hw))
    return found


def _copy(picture: Any, folder: Path, taken: set[str]) -> tuple[str, tuple[int, int]]:
    """Copy a picture under a name of its own: as it is, or as PNG where it is read otherwise."""
    path = picture.find() if isinstance(picture, UprightPicture) else None
    stem = path.stem if path else f"{len(taken):06d}"
    while stem in taken:
        stem = f"{stem}_{len(taken)}"
    taken.add(stem)
    if path and isinstance(picture, UprightPicture):
        upright, stored = picture.sizes_hw()
        if picture.size_hw in (None, upright) or picture.size_hw != stored:
            shutil.copyfile(path, folder / f"{stem}{path.suffix}")
            return f"{stem}{path.suffix}", upright
    from PIL import Image

    pixels = picture.read(MAX_PIXELS)
    Image.fromarray(pixels).save(folder / f"{stem}.png")
    return f"{stem}.png", pixels.shape[:2]


def _classes(rows: Sequence[_Row]) -> tuple[str, ...]:
    """Labels of all prompts in their order, then others alphabetically."""
    asked = [object_prompt(row.example.prefix) for row in rows]
    named = [label for one in asked if one for label in one.labels]
    labels = {one.label for row in rows for one in row.example.objects}
    return tuple(dict.fromkeys([*(n for n in named if n != "all classes"), *sorted(labels)]))


def _write_jsonl(root: Path, split: str, rows: Sequence[_Row], _: Sequence[str]) -> None:
    with (root / f"{split}.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            example = row.example
            names = [f"images/{name}" for name in row.names]
            found: dict[str, Any] = {"image": names[0] if len(names) == 1 else names}
            found["prefix"] = example.prefix
            if example.needs_masks:
                boxes = np.array([box for _, box in row.marked])
                found["suffix"] = format_detections(boxes, [one.label for one in example.objects])
                masks = [encode_rle(one.mask(row.size_hw)) for one in example.objects]
                found["masks"] = masks
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
                continue
            if len(example.targets) == 1 and any(one.rle for one in example.objects):
                found["masks"] = [one.rle for one in example.objects]
            for target in example.targets:
                line = json.dumps({**found, "suffix": target}, ensure_ascii=False)
                file.write(line + "\n")


def _write_coco(root: Path, split: str, rows: Sequence[_Row], classes: Sequence[str]) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        height, width = row.size_hw
        images.append({"id": number, "file_name": row.names[0], "width": width, "height": height})
        for one, (y0, x0, y1, x1) in row.marked:
            box = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
            outline: Any = [
                (ring * (width, height)).round(3).ravel().tolist() for ring in one.rings
            ]
            if one.rle is not None:
                outline = encode_rle(one.mask(row.size_hw))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": classes.index(one.label) + 1,
                    "bbox": [round(v, 3) for v in box],
                    "area": round(box[2] * box[3], 3),
                    "iscrowd": 0,
                    "segmentation": outline,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = root / split / "_annotations.coco.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_yolo(root: Path, split: str, rows: Sequence[_Row], classes: Sequence[str]) -> None:
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in classes)
    with (root / "data.yaml").open("a", encoding="utf-8") as file:
        if not file.tell():
            file.write(f"nc: {len(classes)}\nnames: [{names}]\n")
        file.write(f"{'val' if split == 'valid' else split}: {split}/images\n")
    labels = root / split / "labels"
    labels.mkdir()
    for row in rows:
        lines = []
        for one, (y0, x0, y1, x1) in row.marked:
            values = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
            if ring := _rings(one, row.size_hw, joined=True):
                values = ring[0].ravel().tolist()
            numbers = " ".join(f"{value:.6f}" for value in values)
            lines.append(f"{classes.index(one.label)} {numbers}\n")
        path = labels / f"{Path(row.names[0]).stem}.txt"
        path.write_text("".join(lines), encoding="utf-8")


def _write_voc(root: Path, split: str, rows: Sequence[_Row], _: Sequence[str]) -> None:
    for row in rows:
        height, width = row.size_hw
        tree = ElementTree.Element("annotation")
        _put(tree, "folder", split)
        _put(tree, "filename", row.names[0])
        size = ElementTree.SubElement(tree, "size")
        for name, value in (("width", width), ("height", height), ("depth", 3)):
            _put(size, name, f"{value}")
        for one, (y0, x0, y1, x1) in row.marked:
            item = ElementTree.SubElement(tree, "object")
            _put(item, "name", one.label)
            box = ElementTree.SubElement(item, "bndbox")
            edges = {"xmin": x0 * width, "ymin": y0 * height, "xmax": x1 * width}
            for name, edge in {**edges, "ymax": y1 * height}.items():
                _put(box, name, _px(edge))
            for ring in _rings(one, row.size_hw, joined=False):
                polygon = ElementTree.SubElement(item, "polygon")
                for k, (x, y) in enumerate((ring * (width, height)).tolist(), start=1):
                    _put(polygon, f"x{k}", _px(x))
                    _put(polygon, f"y{k}", _px(y))
        path = root / split / f"{Path(row.names[0]).stem}.xml"
        ElementTree.ElementTree(tree).write(path, encoding="utf-8")


def _put(parent: ElementTree.Element, name: str, text: str) -> None:
    ElementTree.SubElement(parent, name).text = text


def _px(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _rings(one: LabelledObject, size_hw: tuple[int, int], *, joined: bool) -> list[np.ndarray]:
    """Outlines normalised to the picture, in one ring where the format holds no more."""
    if not one.has_mask:
        return []
    if one.rle is None and (len(one.rings) == 1 or not joined):
        return list(one.rings)
    ring = one_ring(one.mask(size_hw)) / size_hw[::-1]
    return [ring] if len(ring) >= 3 else []


_WRITERS = {"jsonl": _write_jsonl, "coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc}
