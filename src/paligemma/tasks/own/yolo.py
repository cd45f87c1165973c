"""YOLO's text files: one a picture, one object a line, as a box or as an outline.

`data.yaml` or `classes.txt` names the classes. A picture without a file has no objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from paligemma.errors import DataError
from paligemma.tasks.own.data_yaml import read_data_yaml
from paligemma.tasks.own.found import Found, OwnForm, split_names
from paligemma.tasks.own.labels import (
    LabelledObject,
    LabelledPicture,
    OwnRow,
    RowError,
    UprightPicture,
    box_of_rings,
    labelled_rows,
)
from paligemma.tasks.reading.coco import MAX_CLASSES
from paligemma.tasks.reading.file_rows import whole_number
from paligemma.tasks.reading.files import read_text, read_text_lines
from paligemma.tasks.reading.finding import MAX_FILES, PICTURE_SUFFIXES

NAME = "YOLO"
LOOKS_FOR = "data.yaml or classes.txt with folders images and labels"
_YAMLS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_CLASSES = ("classes.txt", "obj.names", "labels/classes.txt")
_MAX_CLASSES_BYTES = 1 << 20
_MAX_OBJECTS = 10_000


def find(data: Path, split: str, form: OwnForm) -> Found | None:
    """Find the pictures of a split; a folder without splits is `train`."""
    root = data
    if data.is_file():
        if data.suffix not in (".yaml", ".yml"):
            return None
        root, names = data.parent, data
    else:
        every = [data / name for name in (*_YAMLS, *_CLASSES)]
        found = [path for path in every if path.is_file()]
        if not found:
            return None
        names = found[0]
    pictures = _pictures(root, names, split)
    if pictures is None:
        return None
    return Found(format=NAME, path=names, rows=partial(_rows, root, names, pictures, split, form))


def _pictures(root: Path, names: Path, split: str) -> Path | None:
    """The folder of the pictures of a split, or a list of them in a file."""
    stated: list[str] = []
    if names.suffix in (".yaml", ".yml"):
        keys = split_names(split)
        content = read_data_yaml(names, ("path", *keys))
        for key in keys:
            value = content.get(key)
            if isinstance(value, list) and len(value) > 1:
                raise RowError(
                    "classes",
                    f"{names}: {key} must name one folder or list, got {len(value)}; split the set "
                    "or join the folders",
                )
            stated += [value] if isinstance(value, str) and value else value or []
    places = [_below(one) for one in stated]
    for name in split_names(split):
        places += [PurePosixPath(name, "images"), PurePosixPath("images", name)]
    if split == "train":
        places += [PurePosixPath("images"), PurePosixPath("obj_train_data")]
    for place in places:
        found = root / place
        if found.is_file() and found.suffix == ".txt":
            return found
        if found.is_dir() and _labels(found) is not None:
            return found
        # A split may be named with the folder above its pictures.
        if (found / "images").is_dir() and _labels(found / "images") is not None:
            return found / "images"
    return None


def _below(stated: str) -> PurePosixPath:
    """A stated path from the set's folder: exports write `../train/images`, or where they ran."""
    parts = [part for part in stated.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return PurePosixPath(*(parts[-2:] if stated.startswith("/") else parts))


def _labels(images: Path) -> Path | None:
    """The folder of the label files: `images` becomes `labels` in the path, or the same folder."""
    parts = list(images.parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:at], "labels", *parts[at + 1 :])
        return labels if labels.is_dir() else None
    return images


def _classes(names: Path) -> tuple[str, ...]:
    """Names by number.

    Raises:
        RowError: none, too many, two alike, or numbers with gaps.
    """
    if names.suffix not in (".yaml", ".yml"):
        text = read_text(names, max_bytes=_MAX_CLASSES_BYTES, source="the export of a YOLO set")
        classes = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        content = read_data_yaml(names, ("names", "kpt_shape"))
        if "kpt_shape" in content:
            raise RowError(
                "classes",
                f"{names} describes keypoints (kpt_shape), which have no prompt; export boxes or "
                "outlines",
            )
        stated = content.get("names", [])
        if isinstance(stated, dict):
            numbers = sorted(
                stated, key=lambda one: -1 if (number := whole_number(one)) is None else number
            )
            if [str(k) for k in range(len(stated))] != numbers:
                raise RowError(
                    "classes", f"{names}: names must be numbered 0, 1, 2, ..., got {numbers[:5]}"
                )
            stated = [stated[number] for number in numbers]
        classes = stated if isinstance(stated, list) else [stated]
    if not classes or len(classes) > MAX_CLASSES or len(set(classes)) != len(classes):
        raise RowError(
            "classes",
            f"{names} must name 1 to {MAX_CLASSES} classes, each once, got {len(classes)}, of "
            f"which {len(set(classes))} differ",
        )
    return tuple(classes)


def _rows(root: Path, names: Path, place: Path, split: str, form: OwnForm) -> Iterator[OwnRow]:
    classes = _classes(names)
    if place.is_file():
        listed = [root / _below(line) for _, line in read_text_lines(place)]
    else:
        listed = [
            Path(folder) / name
            for folder, _, files in sorted(os.walk(place))
            for name in sorted(files)
            if Path(name).suffix.lower() in PICTURE_SUFFIXES - {""} and not name.startswith(".")
        ]
    if not listed or len(listed) > MAX_FILES:
        raise DataError(f"{place} must hold 1 to {MAX_FILES} pictures, got {len(listed)}")
    pictures = (_picture(path, root, classes, f"{split}/{k}") for k, path in enumerate(listed))
    yield from labelled_rows(pictures, classes, masks=form.masks)


def _picture(
    path: Path, root: Path, classes: tuple[str, ...], name: str
) -> LabelledPicture | RowError:
    folder = _labels(path.parent) or path.parent
    labels = folder / f"{path.stem}.txt"
    objects: list[LabelledObject] = []
    try:
        if labels.is_file():
            for number, line in read_text_lines(labels):
                if number > _MAX_OBJECTS:
                    raise RowError("row", f"{labels}: more than {_MAX_OBJECTS} lines")
                objects.append(_object(line, f"{labels}, row {number}", classes))
    except DataError as error:
        return error if isinstance(error, RowError) else RowError("row", str(error))
    return LabelledPicture(
        id=name,
        where=f"{labels}",
        picture=UprightPicture(path=path, folder=root),
        objects=tuple(objects),
    )


def _object(line: str, where: str, classes: tuple[str, ...]) -> LabelledObject:
    try:
        first, *rest = line.split()
        number, values = int(first), np.array([float(one) for one in rest])
    except ValueError:
        number, values = -1, np.zeros(0)
    if len(values) not in (4, 5) and (len(values) < 6 or len(values) % 2):
        raise RowError(
            "row",
            f"{where}: an object is `class x y width height` or `class x y x y x y ...` in parts "
            f"of the picture, got {line[:80]!r}; write it so",
        )
    if not 0 <= number < len(classes):
        raise RowError(
            "classes",
            f"{where}: a class must be in 0..{len(classes) - 1}, the {len(classes)} names of the "
            f"set, got {number}; add its name or correct it",
        )
    if len(values) > 5:
        ring = values.reshape(-1, 2)
        return LabelledObject(label=classes[number], box_yxyx=box_of_rings([ring]), rings=(ring,))
    x, y, width, height = values[:4].tolist()
    box = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
    return LabelledObject(label=classes[number], box_yxyx=box)
