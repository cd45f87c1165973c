"""The objects of one image as a sequence: select, export, draw and show them."""

from __future__ import annotations

import io
import json
import logging
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from paligemma.errors import ConfigError, DataError, ImageError
from paligemma.outputs import export
from paligemma.outputs.boxes import SEPARATOR, distinct_places
from paligemma.outputs.types import Detection
from paligemma.outputs.words import detections_json, detections_text
from paligemma.whole_file import write_whole

if TYPE_CHECKING:
    from PIL import Image

    from paligemma.outputs.draw import DrawStyle

logger = logging.getLogger(__name__)

_MAX_SHOWN = 6
_NOTEBOOK_SIDE_PX = 1280


def require_confidence(threshold: float) -> None:
    """Raise ConfigError unless a lowest confidence is a number in [0, 1]."""
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise ConfigError(
            f"a threshold must be a confidence in [0, 1], got {threshold!r:.100}; 0.5 is usual"
        )


def require_overlap(max_overlap: float) -> None:
    """Raise ConfigError unless a largest overlap is a number in [0, 1]."""
    if (
        isinstance(max_overlap, bool)
        or not isinstance(max_overlap, Real)
        or not 0 <= max_overlap <= 1
    ):
        raise ConfigError(
            f"max_overlap must be an intersection over union in [0, 1], got "
            f"{max_overlap!r:.100}; 0.5 "
            "is usual"
        )


def require_selection(threshold: float | None, max_overlap: float | None) -> None:
    """Raise ConfigError unless each of the two is in [0, 1] or None."""
    if threshold is not None:
        require_confidence(threshold)
    if max_overlap is not None:
        require_overlap(max_overlap)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Detections(Sequence[Detection]):
    """The objects of one image, in the order the model named them.

    An integer index gives one `Detection`; a slice, a boolean mask or a list of positions gives
    `Detections`: `found[found.labels == "cat"]`. `str` gives a table; a notebook shows the picture
    with its boxes.

    Attributes:
        items: the objects, invalid ones included (`Detection.is_valid`).
        image_wh: width and height of the image, pixels.
        text: the model's whole output.
        rest: the part of the text that belongs to no object.
        asked_labels: labels of the question, in its order; () where the question named none. They
            decide the class numbers of every export.
        open_picture: function that gives the picture that was asked about, uint8[H, W, 3]; None
            where it is unknown. A file is read again, so that the objects of many large pictures
            hold none of them in memory.
    """

    items: tuple[Detection, ...]
    image_wh: tuple[int, int]
    text: str = ""
    rest: str = ""
    asked_labels: tuple[str, ...] = ()
    open_picture: Callable[[], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Detections: ...
    def __getitem__(
        self, index: int | slice | Sequence[int] | np.ndarray
    ) -> Detection | Detections:
        if isinstance(index, slice):
            return replace(self, items=self.items[index])
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            return self.items[index]
        return replace(self, items=tuple(self.items[i] for i in _positions(index, len(self))))

    def __repr__(self) -> str:
        num, (width, height) = len(self), self.image_wh
        counts = Counter(item.name for item in self)
        shown = [f"{count} {reprlib.repr(name)}" for name, count in counts.most_common(_MAX_SHOWN)]
        if len(counts) > len(shown):
            shown.append(f"and {len(counts) - len(shown)} more labels")
        labels = f": {', '.join(shown)}" if shown else ""
        return f"Detections({num} object{'s' * (num != 1)} in {width}x{height} px{labels})"

    def __str__(self) -> str:
        return detections_text(self.items, text=self.text, rest=self.rest)

    def _repr_png_(self) -> bytes | None:
        """The picture with its boxes, for a notebook; None where the picture is not at hand."""
        try:
            shown = self.draw()
        except (DataError, ImageError):  # such as a file that has gone
            return None
        shown.thumbnail((_NOTEBOOK_SIDE_PX, _NOTEBOOK_SIDE_PX))
        file = io.BytesIO()
        shown.save(file, "PNG")
        return file.getvalue()

    @property
    def picture(self) -> np.ndarray | None:
        """uint8[H, W, 3], the picture that was asked about; None where it is unknown.

        Raises:
            ImageError: its file can no longer be read.
        """
        return None if self.open_picture is None else self.open_picture()

    @property
    def xyxy(self) -> np.ndarray:
        """float64[N, 4], boxes (x0, y0, x1, y1) in pixels of the original image."""
        return np.array([item.box_xyxy_px for item in self], np.float64).reshape(-1, 4)

    @property
    def labels(self) -> np.ndarray:
        """object[N], the label of each object; None where it has none."""
        return np.array([item.label for item in self], object)

    @property
    def scores(self) -> np.ndarray:
        """float64[N], the confidence of each object; NaN where it is unknown."""
        return np.array([np.nan if item.score is None else item.score for item in self], np.float64)

    @property
    def masks(self) -> np.ndarray | None:
        """bool[N, H, W] at the image's size, empty for objects without a mask; None where none has
        one."""
        return export.stacked_masks(self.items)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by number: the asked labels, then all others alphabetically.

        Labels that the model wrote unasked follow the asked ones, so that these keep their numbers
        in every picture. An object without a label is called "object".
        """
        return class_names([self])

    def filter(
        self, *, label: str | Iterable[str] | None = None, score: float | None = None
    ) -> Detections:
        """The objects of some labels, of some confidence, or of both.

        Args:
            label: a label or several; None keeps all. "object" selects objects without a label.
            score: lowest confidence in [0, 1], see `above`; None keeps all.

        Raises:
            ConfigError: the confidence is not in [0, 1].
        """
        found = self if score is None else self.above(score)
        if label is None:
            return found
        wanted = {label} if isinstance(label, str) else {*label}
        return replace(found, items=tuple(item for item in found if item.name in wanted))

    def above(self, score: float) -> Detections:
        """Only the valid objects with at least this confidence; unscored objects stay.

        Raises:
            ConfigError: the confidence is not in [0, 1].
        """
        require_confidence(score)
        kept = tuple(d for d in self if d.is_valid and (d.score is None or d.score >= score))
        return replace(self, items=kept)

    def distinct(self, max_overlap: float = 0.5) -> Detections:
        """Only the most confident of the objects of one label that overlap more than that.

        A model may name one object twice; the second box is then another guess of the first.
        Invalid objects stay. Among equal or missing confidences the first stays.

        Args:
            max_overlap: intersection over union of boxes, in [0, 1].

        Raises:
            ConfigError: the overlap is not in [0, 1].
        """
        require_overlap(max_overlap)
        valid = [d for d in self if d.is_valid]
        places = distinct_places(
            [d.label for d in valid],
            [d.box_yxyx for d in valid],
            [d.score for d in valid],
            max_overlap,
        )
        kept = {id(valid[place]) for place in places}
        return replace(self, items=tuple(d for d in self if not d.is_valid or id(d) in kept))

    def selected(self, threshold: float | None, max_overlap: float | None) -> Detections:
        """`distinct`, then `above`, each where its number is given."""
        found = self if max_overlap is None else self.distinct(max_overlap)
        return found if threshold is None else found.above(threshold)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `--json` prints too; see `words.detections_json`."""
        return detections_json(self.items, text=self.text, rest=self.rest)

    def to_coco(
        self,
        *,
        image_id: int = 1,
        category_ids: Mapping[str, int] | None = None,
        polygons: bool = False,
    ) -> list[dict[str, Any]]:
        """COCO annotations; by default category 1 is the first of `class_names`.

        See `export.to_coco` for the arguments.
        """
        if category_ids is None:
            category_ids = _category_ids(self._numbered("category_ids"))
        return export.to_coco(self, image_id=image_id, category_ids=category_ids, polygons=polygons)

    def to_yolo(
        self,
        *,
        class_names: Sequence[str] | None = None,
        polygons: bool = False,
        with_scores: bool = False,
    ) -> str:
        """The text of a YOLO label file; by default class 0 is the first of `class_names`.

        See `export.to_yolo` for the arguments.
        """
        names = self._numbered("class_names") if class_names is None else class_names
        return export.to_yolo(self, class_names=names, polygons=polygons, with_scores=with_scores)

    def to_supervision(self, *, class_names: Sequence[str] | None = None) -> Any:
        """`supervision.Detections`; by default class 0 is the first of `class_names`.

        See `export.to_supervision` for the arguments.
        """
        names = self._numbered("class_names") if class_names is None else class_names
        return export.to_supervision(self, class_names=names)

    def _numbered(self, argument: str) -> tuple[str, ...]:
        """`class_names`, with a warning of numbers that hold for this picture alone."""
        names = self.class_names
        if unasked := [name for name in names if name not in self.asked_labels]:
            logger.warning(
                "the question did not ask for %s, so the class numbers of these labels hold for "
                "this picture alone; pass %s",
                reprlib.repr(unasked),
                argument,
            )
        return names

    def draw(
        self, image: Image.Image | np.ndarray | None = None, *, style: DrawStyle | None = None
    ) -> Image.Image:
        """The picture with its boxes, masks and labels; see `draw.draw_detections`.

        Args:
            image: the image to draw on; the picture that was asked about by default.
            style: how results are drawn; by default the asked labels have the same colours in
                every picture.

        Raises:
            DataError: no image is given and the picture is unknown.
            ImageError: the image is unreadable, or its size differs.
        """
        from paligemma.outputs.draw import DrawStyle, draw_detections

        image = self.picture if image is None else image
        if image is None:
            raise DataError("these detections do not hold their picture; pass it to draw")
        style = style or DrawStyle(labels=self.asked_labels)
        return draw_detections(image, self, image_wh=self.image_wh, style=style)

    def save_png(
        self,
        path: str | Path,
        image: Image.Image | np.ndarray | None = None,
        *,
        style: DrawStyle | None = None,
    ) -> None:
        """Write `draw(image)` as PNG, whole or not at all."""
        export.save_png(self.draw(image, style=style), path)


def join_detections(many: Sequence[Detections]) -> Detections:
    """The objects of several questions about one image, in order, as those of one question."""
    labels = dict.fromkeys(label for found in many for label in found.asked_labels)
    return replace(
        many[0],
        items=tuple(item for found in many for item in found),
        text=SEPARATOR.join(found.text for found in many),
        rest=" ".join(found.rest for found in many if found.rest),
        asked_labels=tuple(labels),
    )


def class_names(many: Iterable[Detections]) -> tuple[str, ...]:
    """Names of the classes of many images: all asked labels in order, then others alphabetically.

    Only valid objects count. An object without a label is called "object".
    """
    many = list(many)
    asked = [label for found in many for label in found.asked_labels]
    written = sorted({item.name for found in many for item in found if item.is_valid})
    return tuple(dict.fromkeys([*asked, *written]))


def coco_dataset(
    images: Iterable[tuple[str | Path, Detections]],
    *,
    category_ids: Mapping[str, int] | None = None,
    polygons: bool = False,
) -> dict[str, Any]:
    """The object of a whole COCO file of many images; `save_coco` writes it.

    Args:
        images: file name and objects of each image, as `detect_many` gives them.
        category_ids: label -> number; by default `class_names` of all images, counted from 1.
            Where they are given, the images are taken one by one.
        polygons: whether masks are polygons (holes filled) instead of run lengths.

    Returns:
        `{"images", "annotations", "categories"}`.

    Raises:
        DataError: a label is not in `category_ids`.
    """
    if category_ids is None:
        images = list(images)
        category_ids = _category_ids(class_names([found for _, found in images]))
    records: list[dict[str, Any]] = []
    files = []
    for image_id, (name, found) in enumerate(images, start=1):
        width, height = found.image_wh
        files.append({"id": image_id, "file_name": str(name), "width": width, "height": height})
        records += export.to_coco(
            found,
            image_id=image_id,
            category_ids=category_ids,
            polygons=polygons,
            first_id=len(records) + 1,
        )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": files, "annotations": records, "categories": categories}


def save_coco(
    path: str | Path,
    images: Iterable[tuple[str | Path, Detections]],
    *,
    category_ids: Mapping[str, int] | None = None,
    polygons: bool = False,
) -> None:
    """Write the COCO file of many images, whole or not at all; arguments as for `coco_dataset`.

    Raises:
        DataError: a label is not in `category_ids`.
        ConfigError: the file cannot be written.
    """
    body = coco_dataset(images, category_ids=category_ids, polygons=polygons)
    write_whole(Path(path), [json.dumps(body, allow_nan=False) + "\n"])


def _category_ids(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names, start=1)}


def _positions(index: object, num: int) -> list[int]:
    """Positions that a boolean mask or a list of integers selects among `num` objects.

    Raises:
        IndexError: the index is of another kind, length or range.
    """
    chosen = np.asarray(index)
    if chosen.shape == (0,):
        return []
    if chosen.dtype == bool and chosen.shape == (num,):
        return np.flatnonzero(chosen).tolist()
    is_whole = chosen.ndim == 1 and np.issubdtype(chosen.dtype, np.integer)
    if is_whole and -num <= chosen.min() and chosen.max() < num:
        return chosen.tolist()
    raise IndexError(
        f"detections take a position, a slice, {num} booleans or a list of positions below {num}, "
        f"got {chosen.dtype}{list(chosen.shape)}; select by `filter`, or compare `labels` or "
        "`scores`"
    )
