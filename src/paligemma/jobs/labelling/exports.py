"""Labels as the files of other tools, written row by row: COCO and YOLO."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from paligemma.errors import DataError
from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.jobs.labelling.records import Record
from paligemma.outputs.detections import Detections
from paligemma.outputs.export import to_coco, yolo_names
from paligemma.outputs.words import detection_from_json
from paligemma.whole_file import remove_unfinished, require_writable, write_whole

logger = logging.getLogger(__name__)

# Parts of a path that lead elsewhere.
_NO_FOLDERS = (os.curdir, os.pardir, os.sep)
# What no file system, or no person at a terminal, takes in a name; and how long a part may be.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")
_MAX_NAME_BYTES = 200
# Files of YOLO.
LABELS, DATA_YAML = "labels", "data.yaml"
_LABEL_FILE = re.compile(r".*\.txt", re.DOTALL)


def detections_of(record: Record) -> Detections:
    """The objects of a labelled row.

    Raises:
        DataError: the record is damaged; names its row.
    """
    try:
        size = (int(record["width"]), int(record["height"]))
        items = tuple(detection_from_json(one, size) for one in record["detections"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"row {record.get('row')} of the labels is damaged ({error}); restore its file"
        ) from error
    return Detections(items=items, image_wh=size, text=str(record.get("text", "")))


def _valid(folder: LabelFolder) -> Iterator[tuple[str, Detections]]:
    """Picture and objects of every row that has some, without boxes that have no area.

    Raises:
        DataError: no row has objects.
    """
    has_objects = False
    for record in folder.records():
        if "detections" not in record:
            continue
        has_objects = True
        found = detections_of(record)
        yield (
            str(record["image"]),
            replace(found, items=tuple(one for one in found if one.is_valid)),
        )
    if not has_objects:
        raise DataError(
            f"{folder.path} has no boxes to write as COCO or YOLO; ask for some, as with --task "
            "detect"
        )


def _classes(folder: LabelFolder, asked: Sequence[str]) -> list[str]:
    """Labels that were asked for, then further ones as they come.

    Raises:
        DataError: pictures of unequal size have one name, and would be taken for one.
    """
    names, sizes = dict.fromkeys(asked), dict[bytes, int]()
    for name, found in _valid(folder):
        size = hash(found.image_wh)
        if sizes.setdefault(_short(name), size) != size:
            raise DataError(
                f"pictures of unequal size are named {name[:200]!r}, so that their objects cannot "
                "be told apart in COCO or YOLO; give each picture a name of its own"
            )
        names.update(dict.fromkeys(one.name for one in found))
    return list(names)


def _short(name: str) -> bytes:
    """Eight bytes a picture, so that millions fit."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _label_name(name: str) -> Path:
    """Where the labels of a picture lie below their folder, whatever its name."""
    parts = [_UNSAFE.sub("_", part) for part in Path(name).parts if part not in _NO_FOLDERS]
    *folders, last = parts or ["picture"]
    stem = os.path.splitext(last)[0]
    return Path(*map(_bounded, folders), _bounded(stem) + ".txt")


def _bounded(part: str) -> str:
    """The part of a path, where it is too long with a digest in the place of its end."""
    data = part.encode("utf-8", "replace")
    if len(data) <= _MAX_NAME_BYTES:
        return part
    return data[: _MAX_NAME_BYTES - 17].decode("utf-8", "ignore") + "-" + _short(part).hex()


def write_coco(path: Path, folder: LabelFolder, asked: Sequence[str]) -> None:
    """Write all objects as one COCO file, whole or not at all; rows of a picture share it.

    Args:
        asked: labels of the prompt, which get the first numbers.

    Raises:
        DataError: no row has objects, pictures of unequal size have one name, or a file is
            damaged.
        ConfigError: the file cannot be written.
    """
    numbers = {name: number for number, name in enumerate(_classes(folder, asked), start=1)}
    ids: dict[bytes, int] = {}

    def pieces() -> Iterator[str]:
        yield '{"images": ['
        for name, found in _valid(folder):
            if (short := _short(name)) not in ids:
                ids[short] = len(ids) + 1
                width, height = found.image_wh
                image = {"id": len(ids), "file_name": name, "width": width, "height": height}
                yield (", " if len(ids) > 1 else "") + json.dumps(image)
        yield '], "annotations": ['
        num = 0
        for name, found in _valid(folder):
            for one in to_coco(
                found.items, image_id=ids[_short(name)], category_ids=numbers, first_id=num + 1
            ):
                yield (", " if num else "") + json.dumps(one, allow_nan=False)
                num += 1
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        yield '], "categories": ' + json.dumps(categories) + "}\n"

    write_whole(path, pieces())


def write_yolo(path: Path, folder: LabelFolder, asked: Sequence[str]) -> None:
    """Write labels/NAME.txt of each picture, then data.yaml.

    Label files of other pictures stay, with a warning.

    Raises:
        DataError: no row has objects, two pictures differ only in their suffix or have one name
            and unequal sizes, or a file is damaged.
        ConfigError: the folder cannot be written.
    """
    names = _classes(folder, asked)
    for top, _, _ in os.walk(path / LABELS):
        remove_unfinished(Path(top), _LABEL_FILE)
    written: dict[bytes, bytes] = {}
    for name, found in _valid(folder):
        target = path / LABELS / _label_name(name)
        stem, picture = _short(str(target)), _short(name)
        if written.get(stem, picture) != picture:
            raise DataError(
                f"label files are named after their pictures, but {target.name} would be of "
                "several; label these pictures apart"
            )
        require_writable(target.parent)
        outlined = any(one.region is not None for one in found)
        before = target.read_text() if stem in written else ""
        text = found.to_yolo(class_names=names, polygons=outlined)
        write_whole(target, [before, text])
        written[stem] = picture
    write_whole(path / DATA_YAML, [yolo_names(names)])
    others = [one for one in (path / LABELS).rglob("*.txt") if _short(str(one)) not in written]
    if others:
        logger.warning(
            "%s label files of other pictures, such as %s, stay beside %s, whose classes may not "
            "be theirs; remove them",
            f"{len(others):,}",
            min(others),
            path / DATA_YAML,
        )
