"""A picture with the objects that someone marked on it, as every format of labels gives it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from paligemma.errors import DataError, ImageError, PaliGemmaError
from paligemma.example import Example, Picture
from paligemma.outputs.boxes import Box, encode_boxes, format_detections
from paligemma.outputs.contours import fill_rings
from paligemma.outputs.rle import decode_rle
from paligemma.processing.image import MAX_PIXELS, load_image, picture_sizes_hw
from paligemma.processing.prompts import detect_prompt, segment_prompt
from paligemma.tasks.reading.finding import find_picture

# A tool that rounds may place an edge so far outside; it is moved to the border, with a note.
_SLACK = 0.01


class RowError(DataError):
    """A row that breaks a rule.

    Attributes:
        rule: short name of the rule, by which findings are counted.
    """

    def __init__(self, rule: str, sentence: str) -> None:
        super().__init__(sentence)
        self.rule = rule


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check has to say about a row.

    Attributes:
        rule: short name of the rule.
        said: file and row, rule, value and remedy in one sentence.
        is_error: whether the row cannot be learnt from.
    """

    rule: str
    said: str
    is_error: bool = False


@dataclass(frozen=True, kw_only=True)
class UprightPicture:
    """A picture in a file, turned as its EXIF says: the way its labeller saw it.

    Attributes:
        path: path of the file, as its data file gives it; see `find_picture`.
        folder: folder from which the data file names it, which it may not leave; that of `path` by
            default.
        size_hw: height and width that its labels state; where only the stored pixels have this
            size, they are not turned.
    """

    path: Path
    folder: Path | None = field(default=None, repr=False, compare=False)
    size_hw: tuple[int, int] | None = None

    def find(self) -> Path:
        """Find the file; raise ImageError as `find_picture` does."""
        return find_picture(self.path, self.folder or self.path.parent)

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8[H, W, 3].

        Raises:
            ImageError: not found, unreadable, or larger than the bound.
        """
        path = self.find()
        image = load_image(path, max_pixels=max_pixels)
        if self.size_hw not in (None, image.shape[:2]) and self.size_hw == image.shape[1::-1]:
            stored = load_image(path, max_pixels=max_pixels, upright=False)
            return stored if stored.shape[:2] == self.size_hw else image
        return image

    def sizes_hw(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width upright and as stored, from the heading alone.

        Raises:
            ImageError: not found, or no picture.
        """
        return picture_sizes_hw(self.find())


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledObject:
    """One object that someone marked.

    Attributes:
        box_yxyx: normalised by the picture's height and width, as the file places it.
        rings: float64[N, 2] each, outlines (x, y) normalised likewise; their union is the mask.
        rle: the mask as COCO's run lengths, in the place of outlines.
    """

    label: str
    box_yxyx: Box
    rings: tuple[np.ndarray, ...] = ()
    rle: Mapping[str, Any] | None = None

    @property
    def has_mask(self) -> bool:
        """Whether more than a box is known."""
        return bool(self.rings) or self.rle is not None

    def mask(self, size_hw: tuple[int, int]) -> np.ndarray:
        """bool[H, W] of a picture of that size; the filled box where no mask is known.

        Raises:
            DataError: run lengths are damaged.
        """
        height, width = size_hw
        if self.rle is not None:
            mask = decode_rle(self.rle)
            if mask.shape == size_hw or not mask.size:
                return mask if mask.size else np.zeros(size_hw, bool)
            rows = np.arange(height) * mask.shape[0] // height
            return mask[rows][:, np.arange(width) * mask.shape[1] // width]
        y0, x0, y1, x1 = self.box_yxyx
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        return fill_rings([ring * (width, height) for ring in self.rings or (corners,)], size_hw)


def box_of_rings(rings: Sequence[np.ndarray]) -> Box:
    """The box around outlines (x, y), as (ymin, xmin, ymax, xmax)."""
    corners = np.concatenate(rings)
    (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
    return y0, x0, y1, x1


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPicture:
    """A picture with its objects.

    Attributes:
        where: file and row or picture, for sentences about it.
        size_hw: height and width that the labels state, or None.
        notes: what was amiss though it can be used.
    """

    id: str
    where: str
    picture: Picture
    objects: tuple[LabelledObject, ...]
    size_hw: tuple[int, int] | None = None
    notes: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OwnExample(Example):
    """A row of a user.

    Attributes:
        where: file and row, for sentences about it.
        objects: marked objects, in the order of the file.
        notes: what was amiss though it can be used.
        needs_masks: whether the answer, still without targets, is to hold masks.
    """

    where: str = ""
    objects: tuple[LabelledObject, ...] = field(default=(), repr=False, compare=False)
    notes: tuple[Finding, ...] = ()
    needs_masks: bool = False


OwnRow = OwnExample | DataError


def size_of(example: OwnExample) -> tuple[int, int]:
    """Height and width of the picture on which the objects lie.

    Raises:
        RowError: the picture cannot be read.
    """
    picture = example.pictures[0]
    if isinstance(picture, UprightPicture) and picture.size_hw is not None:
        return picture.size_hw
    try:
        if isinstance(picture, UprightPicture):
            return picture.sizes_hw()[0]
        height, width, _ = picture.read(MAX_PIXELS).shape
    except ImageError as error:
        raise RowError("picture", f"{example.where}: {error}") from error
    return height, width


def labels_of(pictures: Iterable[LabelledPicture | DataError]) -> tuple[str, ...]:
    """The labels of some pictures, alphabetically, where no file lists the classes."""
    marked = [one for one in pictures if isinstance(one, LabelledPicture)]
    return tuple(sorted({one.label for picture in marked for one in picture.objects}))


def picture_beside(labels: Path, name: str, root: Path) -> Path:
    """The picture that a label file names: beside it or in a folder of pictures."""
    plain = PurePosixPath(name.replace("\\", "/")).name
    folders = (labels.parent, *(root / one for one in ("JPEGImages", "images", labels.parent.name)))
    folders += tuple(root / one / labels.parent.name for one in ("JPEGImages", "images"))
    stems = [plain, *(f"{labels.stem}{suffix}" for suffix in (".jpg", ".png", ".jpeg"))]
    found = (folder / stem for stem in stems if stem for folder in folders)
    return next(
        (path for path in found if os.path.isfile(path)), labels.parent / (plain or labels.stem)
    )


def rows_of_files(
    paths: Sequence[Path],
    others: Iterable[Path],
    read: Callable[[Path], LabelledPicture],
    *,
    masks: bool,
) -> Iterator[OwnRow]:
    """The rows of a format with one label file a picture; a file that is wrong costs its row.

    Args:
        paths: the label files of the split.
        others: those of other splits, whose labels are classes too.
        read: reads one label file.
        masks: see `labelled_rows`.
    """

    def read_or_error(path: Path) -> LabelledPicture | DataError:
        try:
            return read(path)
        except DataError as error:
            return error if isinstance(error, RowError) else RowError("row", str(error))

    pictures = [read_or_error(path) for path in paths]
    rest = sorted(set(others) - set(paths))
    classes = labels_of([*pictures, *map(read_or_error, rest)])
    yield from labelled_rows(pictures, classes, masks=masks)


def labelled_rows(
    pictures: Iterable[LabelledPicture | DataError], classes: Sequence[str], *, masks: bool
) -> Iterator[OwnRow]:
    """Make the example of every picture: `detect a ; b` over all classes of the set.

    Where every object of a picture has a mask, its prompt is `segment a ; b`, and targets come from
    `answered`, which needs a mask codec. A picture without objects is asked so where all objects
    of the set have masks.

    Args:
        pictures: pictures, with an error in the place of each bad one.
        classes: labels of the set in the order of the prompt.
        masks: whether masks are asked for where objects have them.
    """
    pictures = list(pictures)
    have = [o.has_mask for one in pictures if isinstance(one, LabelledPicture) for o in one.objects]
    masks, by_default = masks and any(have), masks and bool(have) and all(have)
    for one in pictures:
        if isinstance(one, DataError):
            yield one
            continue
        try:
            without = sum(not marked.has_mask for marked in one.objects)
            if masks and without > 0:
                said = (
                    f"{one.where}: {without} of {len(one.objects)} objects have no outline, others "
                    "of the set have; the row asks for boxes, draw the outline to ask for masks"
                )
                one = replace(one, notes=(*one.notes, Finding(rule="no outline", said=said)))
            asks_masks = masks and not without if one.objects else by_default
            yield _example(one, classes, asks_masks)
        except PaliGemmaError as error:
            rule = error.rule if isinstance(error, RowError) else "row"
            said = str(error)
            yield RowError(rule, said if said.startswith(one.where) else f"{one.where}: {said}")


def _example(one: LabelledPicture, classes: Sequence[str], masks: bool) -> OwnExample:
    if not classes:
        raise RowError("classes", "the set must have at least one class, got none; name them")
    notes = list(one.notes)
    boxes = []
    for marked in one.objects:
        box, note = checked_box(marked, one.where, one.size_hw)
        boxes.append(box)
        notes += [note] if note else []
    labels = [marked.label for marked in one.objects]
    return OwnExample(
        id=one.id,
        prefix=segment_prompt(classes) if masks else detect_prompt(classes),
        pictures=(one.picture,),
        references=object_references(labels, boxes, "segment" if masks else "detect"),
        targets=() if masks else (format_detections(np.array(boxes), labels),),
        where=one.where,
        objects=one.objects,
        notes=tuple(notes),
        needs_masks=masks,
    )


def object_references(
    labels: Sequence[str], boxes_yxyx: Sequence[Box], kind: str
) -> dict[str, Any]:
    """What an answer in boxes is compared with; `kind` is the word of the prompt."""
    objects = [
        {"label": label, "box_yxyx": list(box)}
        for label, box in zip(labels, boxes_yxyx, strict=True)
    ]
    return {"task": "detect", "slice": kind, "objects": objects}


def checked_box(
    marked: LabelledObject, where: str, size_hw: tuple[int, int] | None
) -> tuple[Box, Finding | None]:
    """The box inside the picture, with a note where an edge was moved there.

    Raises:
        RowError: its corners are swapped, it is empty, or it leaves the picture.
    """
    place = f"{where}: the box of {marked.label!r}"
    y0, x0, y1, x1 = marked.box_yxyx
    shown = f"({y0:.4g}, {x0:.4g}, {y1:.4g}, {x1:.4g})"
    if not all(map(math.isfinite, marked.box_yxyx)):
        raise RowError("box outside", f"{place} must be four finite numbers, got {shown}")
    if y1 < y0 or x1 < x0:
        raise RowError(
            "box swapped",
            f"{place} must go from its upper left to its lower right corner, got {shown} as "
            "(ymin, xmin, ymax, xmax) of the picture; swap its corners, or the order of x and y",
        )
    if min(y0, x0) < -_SLACK or max(y1, x1) > 1 + _SLACK:
        fits = False
        if size_hw is not None:
            height, width = size_hw
            fits = y1 * height <= width and x1 * width <= height and min(y0, x0) >= 0
        remedy = "swap x and y, then it fits" if fits else "correct it, or the size of the picture"
        raise RowError(
            "box outside",
            f"{place} must lie in the picture, from 0 to 1, got {shown} as (ymin, xmin, ymax, "
            f"xmax); {remedy}",
        )
    box = (max(y0, 0.0), max(x0, 0.0), min(y1, 1.0), min(x1, 1.0))
    bins = encode_boxes(box).tolist()
    if bins[2] <= bins[0] or bins[3] <= bins[1]:
        raise RowError(
            "box empty",
            f"{place} must be at least one of 1024 steps high and wide, got {shown}; remove it or "
            "draw it again",
        )
    if box == (y0, x0, y1, x1):
        return box, None
    return box, Finding(
        rule="box cut", said=f"{place} reaches beyond the picture, {shown}; it is cut there"
    )
