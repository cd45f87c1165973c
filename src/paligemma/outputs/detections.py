"""The objects of one image as a sequence: select, export and draw them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from paligemma.errors import ConfigError, DataError
from paligemma.outputs import export
from paligemma.outputs.boxes import box_iou
from paligemma.outputs.types import NO_LABEL, Detection

if TYPE_CHECKING:
    from PIL import Image

    from paligemma.outputs.draw import DrawStyle


def require_confidence(threshold: float) -> None:
    """Raise ConfigError unless a lowest confidence is a number in [0, 1]."""
    if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise ConfigError(
            f"a threshold must be a confidence in [0, 1], got {threshold!r}; 0.5 is usual"
        )


def require_overlap(max_overlap: float) -> None:
    """Raise ConfigError unless a largest overlap is a number in [0, 1]."""
    if not isinstance(max_overlap, Real) or not 0 <= max_overlap <= 1:
        raise ConfigError(
            f"max_overlap must be an intersection over union in [0, 1], got {max_overlap!r}; 0.5 "
            "is usual"
        )


def require_selection(threshold: float | None, max_overlap: float | None) -> None:
    """Raise ConfigError unless both are in [0, 1] or not given."""
    if threshold is not None:
        require_confidence(threshold)
    if max_overlap is not None:
        require_overlap(max_overlap)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections(Sequence[Detection]):
    """The objects of one image, in the order the model named them.

    Args:
      items: the objects, invalid ones included (`Detection.is_valid`).
      image_wh: width and height of the image, pixels.
      text: the model's whole output.
      rest: the part of the text that belongs to no object.
      picture: uint8[H, W, 3] that was asked about, for `draw`; None where it is not known.
    """

    items: tuple[Detection, ...]
    image_wh: tuple[int, int]
    text: str = ""
    rest: str = ""
    picture: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Detection, ...]: ...
    def __getitem__(self, index: int | slice) -> Detection | tuple[Detection, ...]:
        return self.items[index]

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.items)

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

        A model may name one thing twice; the second box is then another guess of the first. What
        is invalid stays, and of equal or missing confidences the first stays.

        Args:
          max_overlap: intersection over union of boxes, in [0, 1].

        Raises:
          ConfigError: the overlap is not in [0, 1].
        """
        require_overlap(max_overlap)
        kept: list[Detection] = []
        for one in sorted(self, key=lambda d: 0.0 if d.score is None else -d.score):
            rivals = [d.box_yxyx for d in kept if d.is_valid and d.label == one.label]
            if not (one.is_valid and rivals) or (
                box_iou(rivals, one.box_yxyx).max() <= max_overlap
            ):
                kept.append(one)
        return replace(self, items=tuple(d for d in self if any(d is k for k in kept)))

    def selected(self, threshold: float | None, max_overlap: float | None) -> Detections:
        """First `distinct`, then `above`, each where its number is given."""
        found = self if max_overlap is None else self.distinct(max_overlap)
        return found if threshold is None else found.above(threshold)

    def to_json(self) -> list[dict[str, Any]]:
        """See `export.to_json`."""
        return export.to_json(self)

    def to_coco(
        self,
        *,
        image_id: int = 1,
        category_ids: Mapping[str, int] | None = None,
        polygons: bool = False,
    ) -> list[dict[str, Any]]:
        """See `export.to_coco`."""
        if category_ids is None:
            category_ids = {name: i for i, name in enumerate(label_names([self]), start=1)}
        return export.to_coco(self, image_id=image_id, category_ids=category_ids, polygons=polygons)

    def to_yolo(
        self,
        *,
        class_names: Sequence[str] | None = None,
        polygons: bool = False,
        with_scores: bool = False,
    ) -> str:
        """See `export.to_yolo`."""
        names = label_names([self]) if class_names is None else class_names
        return export.to_yolo(self, class_names=names, polygons=polygons, with_scores=with_scores)

    def to_supervision(self, *, class_names: Sequence[str] | None = None) -> Any:
        """See `export.to_supervision`."""
        names = label_names([self]) if class_names is None else class_names
        return export.to_supervision(self, class_names=names)

    def draw(
        self, image: Image.Image | np.ndarray | None = None, *, style: DrawStyle | None = None
    ) -> Image.Image:
        """The picture with its boxes, masks and labels; see `draw.draw_detections`.

        Args:
          image: what to draw on; the picture that was asked about by default.

        Raises:
          DataError: no image is given and none is known.
          ImageError: it is no image, or its size differs.
        """
        from paligemma.outputs.draw import draw_detections

        image = self.picture if image is None else image
        if image is None:
            raise DataError("These detections do not hold their picture; pass it to draw.")
        return draw_detections(image, self, image_wh=self.image_wh, style=style)

    def save_png(
        self,
        path: str | Path,
        image: Image.Image | np.ndarray | None = None,
        *,
        style: DrawStyle | None = None,
    ) -> None:
        """Writes `draw(image)` as PNG, whole or not at all."""
        export.save_png(self.draw(image, style=style), path)


def coco_dataset(images: Iterable[tuple[str, Detections]]) -> dict[str, Any]:
    """A whole COCO file of many images, with polygons left as run lengths.

    Args:
      images: file name and objects of each image.

    Returns:
      `{"images", "annotations", "categories"}`; labels count from 1 in alphabetical order.
    """
    pairs = list(images)
    names = label_names([d for _, d in pairs])
    category_ids = {name: i for i, name in enumerate(names, start=1)}
    records: list[dict[str, Any]] = []
    files = []
    for image_id, (file_name, item) in enumerate(pairs, start=1):
        width, height = item.image_wh
        files.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        records += export.to_coco(
            item, image_id=image_id, category_ids=category_ids, first_id=len(records) + 1
        )
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    return {"images": files, "annotations": records, "categories": categories}


def label_names(many: Iterable[Detections]) -> list[str]:
    """Every label of the valid objects, alphabetical; objects without one are called "object"."""
    return sorted({item.label or NO_LABEL for d in many for item in d if item.is_valid})
