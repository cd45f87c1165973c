"""JSON lines with a picture, a prompt and an answer.

    {"image": "photos/1.jpg", "prefix": "detect cat", "suffix": "<loc0100>...<loc0900> cat"}

The names are those of big_vision's fork-me example and of what labelling tools export for
PaliGemma. `masks`, which `data convert` writes, holds COCO's run lengths of each object of the
suffix, or null. Further fields are for the templates of own-format.json.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Picture
from paligemma.outputs.boxes import as_box, decode_boxes
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.types import ParsedObject
from paligemma.processing.prompts import CAPTION_STYLES, object_prompt, read_prompt
from paligemma.tasks.own.columns import texts_of
from paligemma.tasks.own.found import Found, OwnForm, split_names
from paligemma.tasks.own.labels import (
    LabelledObject,
    OwnExample,
    OwnRow,
    RowError,
    UprightPicture,
    object_references,
)
from paligemma.tasks.reading.file_rows import FileRow, require_object
from paligemma.tasks.reading.files import parse_json, read_lines, relative_name
from paligemma.tasks.reading.pictures import held_end

logger = logging.getLogger(__name__)

NAME = "JSON lines"
# Roboflow's exports have the second and third, maestro's data sets the last.
_PATTERNS = (
    *("{}.jsonl", "_annotations.{}.jsonl", "dataset/_annotations.{}.jsonl"),
    "{}/annotations.jsonl",
)
LOOKS_FOR = "train.jsonl or _annotations.train.jsonl or train/annotations.jsonl"
# What may be meant as a location or mask token, and what is one.
_TOKEN = re.compile(r"</?\s*(?:loc|seg)[^<>]{0,12}>?", re.IGNORECASE)
_WHOLE_TOKEN = re.compile(r"<loc(?:0\d{3}|10[01]\d|102[0-3])>|<seg(?:0\d\d|1[01]\d|12[0-7])>")


def find(data: Path, split: str, form: OwnForm) -> Found | None:
    """Find the file of a split; a file, or the only one of a folder, is `train`."""
    if data.is_file():
        paths = [data] if data.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.bz2")) else []
    else:
        names = [pattern.format(name) for pattern in _PATTERNS for name in split_names(split)]
        paths = [data / name for name in names if (data / name).is_file()]
        if not paths and split == "train" and len(every := sorted(data.glob("*.jsonl"))) == 1:
            others = split_names("valid", "test")
            paths = [path for path in every if path.stem not in others and path.is_file()]
    if not paths:
        return None
    return Found(format=NAME, path=paths[0], rows=lambda: read(paths[0], form))


def read(path: Path, form: OwnForm) -> Iterator[OwnRow]:
    """Read the rows of a file, with an error in the place of each bad one.

    Raises:
        DataError: the file cannot be read to its end.
    """
    pictures = _Pictures(path)
    for number, line in read_lines(path):
        where = f"{path}, row {number}"
        try:
            fields = require_object(parse_json(line, where), where)
            yield _example(FileRow(fields, where, number), path, pictures, form)
        except RowError as error:
            yield error
        except DataError as error:
            yield RowError("row", str(error))


def text_references(prefix: str, suffix: str, *others: str) -> dict[str, Any]:
    """What an answer in words is compared with; `others` are right too."""
    word = prefix.split(" ", 1)[0]
    kind = "ocr" if prefix == read_prompt() else "answer"
    kind = "caption" if word in CAPTION_STYLES else kind
    found: dict[str, Any] = {"task": kind, "slice": kind, "text": suffix}
    return {**found, "others": list(others)} if others else found


def row_example(
    row: FileRow,
    name: str,
    pictures: tuple[Picture, ...],
    prefix: str,
    suffix: str,
    *others: str,
) -> OwnExample:
    """The example of a prompt and an answer, or of several answers in words.

    Raises:
        RowError: a token or a box of the answer is damaged.
    """
    damaged = [
        one
        for one in _TOKEN.findall(" ".join((prefix, suffix, *others)))
        if not _WHOLE_TOKEN.fullmatch(one)
    ]
    if damaged:
        raise RowError(
            "damaged token",
            f"{row.where}: a location is written <loc0000> to <loc1023> and a codeword <seg000> to "
            f"<seg127>, got {damaged[0]!r}; write it anew",
        )
    asked = object_prompt(prefix)
    objects: tuple[LabelledObject, ...] = ()
    references = text_references(prefix, suffix, *others)
    needs_masks = False
    if asked is not None:
        parsed = parse_objects(suffix)
        if parsed.rest.strip():
            raise RowError(
                "damaged answer",
                f"{row.where}: the answer to {prefix[:40]!r} must be objects such as "
                f"'<loc0000><loc0000><loc1023><loc1023> cat ; ...', got {parsed.rest[:60]!r} "
                "between them",
            )
        masks = _masks(row, len(parsed.objects))
        objects = tuple(
            LabelledObject(label=one.label or "", box_yxyx=as_box(decode_boxes(one.loc)), rle=mask)
            for one, mask in zip(parsed.objects, masks, strict=True)
        )
        for one in parsed.objects:
            _require_box(one, row)
        needs_masks = (
            asked.task == "segment"
            and bool(objects)
            and all(mask is not None for mask in masks)
            and all(one.seg is None for one in parsed.objects)
        )
        references = object_references(
            [one.label for one in objects], [one.box_yxyx for one in objects], asked.task
        )
    return OwnExample(
        id=name,
        prefix=prefix,
        pictures=pictures,
        references=references,
        targets=() if needs_masks else (suffix, *others),
        where=row.where,
        objects=objects,
        needs_masks=needs_masks,
    )


class _Pictures:
    """Pictures of a file: beside it or in a folder `images`, which names of other places share an
    end with."""

    def __init__(self, path: Path) -> None:
        self._path, self._folders = path, (path.parent, path.parent / "images")
        self._is_cut = False

    def named(self, name: str, where: str) -> UprightPicture:
        """The picture of a name.

        Raises:
            DataError: the name is of another place, and no folder holds an end of it.
        """
        inside = None
        if PureWindowsPath(name).root:
            inside = held_end(self._folders, name)
            if inside is None:
                raise DataError(
                    f"{where} must name a file below the data folder, got {name[:80]!r}, of which "
                    f"neither {self._folders[0]} nor a folder images in it holds an end; name that "
                    "folder images, or let images be a link to it"
                )
            if not self._is_cut:
                said = "%s: image names files elsewhere, such as %s, which is taken to be %s"
                logger.warning(said, self._path, name[:200], inside)
            self._is_cut = True
        inside = inside or relative_name(name, where)
        there = (one for one in self._folders if os.path.isfile(one / inside))
        folder = next(there, self._folders[0])
        return UprightPicture(path=folder / inside, folder=folder)


def _example(row: FileRow, path: Path, named: _Pictures, form: OwnForm) -> OwnExample:
    if form.prefix or form.suffix:
        prefix, texts = texts_of(row, form)
    else:
        is_list = isinstance(row.fields.get("suffix"), list)
        prefix, texts = row.text("prefix"), row.texts("suffix") if is_list else [row.text("suffix")]
        if not texts:
            raise RowError(
                "no answer", f"{row.where}: suffix must hold an answer, got none; add one"
            )
    names = row.texts("image") if isinstance(row.fields.get("image"), list) else [row.text("image")]
    pictures = tuple(named.named(name, row.where) for name in names)
    return row_example(row, f"{path.stem}/{row.number}", pictures, prefix, *texts)


def _require_box(one: ParsedObject, row: FileRow) -> None:
    y0, x0, y1, x1 = one.loc
    if one.is_valid:
        return
    rule = "box swapped" if y1 < y0 or x1 < x0 else "box empty"
    raise RowError(
        rule,
        f"{row.where}: a box is ymin, xmin, ymax, xmax with ymin < ymax and xmin < xmax, got "
        f"{one.loc} of {one.label!r}; "
        + ("see whether y and x or two corners are swapped" if "swapped" in rule else "remove it"),
    )


def _masks(row: FileRow, num: int) -> list[Any]:
    if row.fields.get("masks") is None:
        return [None] * num
    masks = row.value("masks", list)
    if len(masks) != num or not all(one is None or isinstance(one, dict) for one in masks):
        raise row.error(
            f"masks must hold run lengths or null for each of {num} objects, got {len(masks)}"
        )
    return masks
