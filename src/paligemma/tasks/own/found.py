"""What a reader of one format found in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from paligemma.tasks.own.labels import OwnRow

SPLITS = ("valid", "test", "train")
# Other names of a split, as tools write them.
_NAMES = {
    "valid": ("valid", "minival", "val", "validation", "validate", "dev"),
    "test": ("test",),
    "train": ("train",),
}
# Folders in which one label file a picture lies.
_ABOVE = ("Annotations", "annotations", "labels")


@dataclass(frozen=True, kw_only=True)
class OwnForm:
    """How labels become prompts and answers: what `own-format.json` in the data folder may set.

    Attributes:
        masks: ask `segment` where every object has a mask; otherwise `detect`.
        language: language of captions and questions that come without a prompt.
        prefix: prompt of rows that have fields, such as "answer en {question}"; "" takes the field
            `prefix`, or what the format says.
        suffix: answer likewise, such as "{answer}".
        first_pixel: number of the first pixel in Pascal VOC's boxes: 1 with the last one inside, as
            in the devkit, 0 for edges, -1 as the file's source says.
    """

    masks: bool = True
    language: str = "en"
    prefix: str = ""
    suffix: str = ""
    first_pixel: int = -1


@dataclass(frozen=True, kw_only=True)
class Found:
    """The rows of one split.

    Attributes:
        format: name of the format.
        path: file or folder by which it was recognised.
        rows: reads the rows, with an error in the place of each bad one.
    """

    format: str
    path: Path
    rows: Callable[[], Iterator[OwnRow]]


def split_names(*splits: str) -> tuple[str, ...]:
    """All names of some splits."""
    return tuple(name for split in splits for name in _NAMES[split])


def label_files(data: Path, split: str, suffix: str) -> list[Path]:
    """The label files of a split, one a picture: in its folder, or of a folder without splits."""
    places = [data / name for name in split_names(split)]
    places += [data / above / name for above in _ABOVE for name in split_names(split)]
    if split == "train":
        places += [data, *(data / above for above in _ABOVE)]
    found = (sorted(place.glob(f"*{suffix}")) for place in places if place.is_dir())
    return next(filter(None, found), [])
