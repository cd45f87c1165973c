"""Finds out in which format a user's labelled pictures lie, and reads them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.own import coco, json_lines, labelme, parquet, voc, webdataset, yolo
from paligemma.tasks.own.found import SPLITS, Found, OwnForm, split_names
from paligemma.tasks.own.hub_set import is_hub_set, local_folder
from paligemma.tasks.own.labels import OwnRow
from paligemma.tasks.reading.formats import read_format

logger = logging.getLogger(__name__)

TASK = "own"
_Find = Callable[[Path, str, OwnForm], Found | None]
# In the order in which they are asked; prompts that a user wrote come before labels.
FORMATS: tuple[tuple[str, str, _Find], ...] = tuple(
    (one.NAME, one.LOOKS_FOR, one.find)
    for one in (json_lines, coco, yolo, voc, labelme, parquet, webdataset)
)


def recognise(data: Path, split: str) -> Found:
    """Find the rows of a split; a file, or a folder without splits, is `train`.

    Raises:
        DataError: no format is recognised, or the folder has no such split.
    """
    if is_hub_set(data):
        data = local_folder(data)
    if not data.exists():
        raise DataError(f"own rows lie in a folder or a file, there is no {data}; check the path")
    form = read_format(data if data.is_dir() else data.parent, TASK, OwnForm())
    found = [one for _, _, find in FORMATS if (one := find(data, split, form))]
    if not found and data.is_file():
        found = [one for _, _, find in FORMATS if (one := find(data, "train", form))]
    if len(found) > 1:
        logger.warning(
            "%s holds %s; %s is read, name a file to read another",
            data,
            " and ".join(f"{one.format} ({one.path.name})" for one in found),
            found[0].format,
        )
    if found:
        logger.info("%s: %s, recognised by %s", data, found[0].format, found[0].path)
        return found[0]
    others = [other for other in SPLITS if other != split and _has(data, other, form)]
    if others:
        raise DataError(
            f"{data} has no rows for {split}, only for {', '.join(others)}; name files after "
            f"{' or '.join(split_names(split))}, or choose --split {others[0]}"
        )
    looked = "; ".join(f"{name}: {looks_for}" for name, looks_for, _ in FORMATS)
    raise DataError(
        f"own rows lie in a format that is recognised, {data} holds none of these ({looked}); "
        "name the file itself, or the folder that holds it"
    )


def splits_of(data: Path) -> tuple[str, ...]:
    """The splits of a set, `train` first; a file is `train`.

    Raises:
        DataError: no format is recognised.
    """
    if is_hub_set(data):
        data = local_folder(data)
    form = read_format(data if data.is_dir() else data.parent, TASK, OwnForm())
    splits = ("train",) if data.is_file() else tuple(reversed(SPLITS))
    found = tuple(split for split in splits if _has(data, split, form))
    if not found:
        recognise(data, "train")
    return found


def _has(data: Path, split: str, form: OwnForm) -> bool:
    return any(find(data, split, form) for _, _, find in FORMATS)


def read_own(data: Path, split: str) -> Iterator[Example]:
    """Read the examples of a split in the order of the files.

    Args:
        data: folder of a recognised format, or one file of it.

    Raises:
        DataError: a row that breaks a rule; names file and row.
    """
    for example in own_rows(data, split):
        if isinstance(example, DataError):
            raise example
        yield example


def own_rows(data: Path, split: str) -> Iterator[OwnRow]:
    """`read_own` with an error in the place of each bad row."""
    yield from recognise(data, split).rows()
