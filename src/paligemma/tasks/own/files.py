"""Reads a user's own rows: JSON lines with a picture, a prompt and an answer.

    {"image": "photos/1.jpg", "prefix": "detect cat", "suffix": "<loc0100>...<loc0900> cat"}

The names are those of big_vision's fork-me example and of what labelling tools export for
PaliGemma. Further fields are ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example, Picture
from paligemma.outputs.boxes import as_box, decode_boxes
from paligemma.outputs.parse import parse_objects
from paligemma.processing.prompts import CAPTION_STYLES, object_prompt, read_prompt
from paligemma.tasks.reading.file_rows import FileRow, read_json_lines
from paligemma.tasks.reading.files import relative_name

logger = logging.getLogger(__name__)

SPLITS = ("valid", "test", "train")
# Other names of a split, as tools write them.
_NAMES = {"valid": ("valid", "val", "validation"), "test": ("test",), "train": ("train",)}
_PATTERNS = ("{}.jsonl", "_annotations.{}.jsonl", "dataset/_annotations.{}.jsonl")
SOURCE = "your own rows, one JSON object a line: image, prefix, suffix"


@dataclass(frozen=True, kw_only=True)
class UprightPicture:
    """A picture in a file, turned as its EXIF says: the way its labeller saw it."""

    path: Path

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8[H, W, 3].

        Raises:
            ImageError: unreadable, or larger than the bound.
        """
        from paligemma.processing.image import load_image

        return load_image(self.path, max_pixels=max_pixels)


def find_rows(data: Path, split: str) -> Path:
    """Find the file of a split in a folder; a file of rows is every split of itself.

    Raises:
        DataError: there is none.
    """
    if data.is_file():
        return data
    names = [pattern.format(name) for name in _NAMES[split] for pattern in _PATTERNS]
    for name in names:
        if (data / name).is_file():
            return data / name
    raise DataError(
        f"own rows lie in a file of JSON lines, {data} holds none of {', '.join(names)}; name the "
        "file itself, or the folder that holds it"
    )


def read_own(data: Path, split: str) -> Iterator[Example]:
    """Read the examples of a split in the order of the file.

    Args:
        data: folder with train.jsonl, valid.jsonl and the like, or one such file; pictures are
            named relative to the file, or to a folder `images` beside it.

    Raises:
        DataError: a row that breaks a rule; names file and row.
    """
    for example in own_rows(data, split):
        if isinstance(example, DataError):
            raise example
        yield example


def own_rows(data: Path, split: str) -> Iterator[Example | DataError]:
    """`read_own` with an error in the place of each bad row; a line that is no JSON ends it."""
    path = find_rows(data, split)
    for row in read_json_lines(path):
        try:
            yield own_example(row, path)
        except DataError as error:
            yield error


def own_example(row: FileRow, path: Path) -> Example:
    """One row as an example.

    Raises:
        DataError: a field is missing or of another type, or the answer has a damaged box.
    """
    prefix, suffix = row.text("prefix"), row.text("suffix")
    names = row.texts("image") if isinstance(row.fields.get("image"), list) else [row.text("image")]
    pictures: list[Picture] = []
    for name in names:
        inside = relative_name(name, row.where)
        folder = path.parent
        if not (folder / inside).is_file() and (folder / "images" / inside).is_file():
            folder = folder / "images"
        pictures.append(UprightPicture(path=folder / inside))
    return Example(
        id=f"{path.stem}/{row.number}",
        prefix=prefix,
        pictures=tuple(pictures),
        references=_references(prefix, suffix, row),
        targets=(suffix,),
    )


def _references(prefix: str, suffix: str, row: FileRow) -> dict[str, Any]:
    asked = object_prompt(prefix)
    if asked is None:
        word = prefix.split(" ", 1)[0]
        kind = "ocr" if prefix == read_prompt() else "answer"
        kind = "caption" if word in CAPTION_STYLES else kind
        return {"task": kind, "slice": kind, "text": suffix}
    parsed = parse_objects(suffix)
    if parsed.rest.strip():
        raise row.error(
            f"the answer to {prefix[:40]!r} must be objects such as "
            f"'<loc0000><loc0000><loc1023><loc1023> cat ; ...', got {parsed.rest[:60]!r} between "
            "them"
        )
    objects = [
        {"label": one.label or "", "box_yxyx": list(as_box(decode_boxes(one.loc)))}
        for one in parsed.objects
    ]
    return {"task": "detect", "slice": asked.task, "objects": objects}
