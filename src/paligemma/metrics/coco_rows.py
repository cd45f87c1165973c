"""Rows of COCO's files, image by image, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paligemma.errors import DataError

Rows = Sequence[Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionRows:
    """Detections of all images.

    Attributes:
        image: int64[D], position of the image.
        category: int64[D], position of the category, -1 for an unknown one.
        box: float64[D, 4], x, y, width and height; no size below 0.
        score: float64[D].
    """

    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    score: np.ndarray

    @property
    def area(self) -> np.ndarray:
        """Area of each box, float64[D]."""
        return self.box[:, 2] * self.box[:, 3]

    def take(self, rows: np.ndarray) -> DetectionRows:
        """Select some rows, or another order."""
        return DetectionRows(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectRows:
    """True objects of all images: as `DetectionRows`, with area float64[G] and crowds bool[G]."""

    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    area: np.ndarray
    is_crowd: np.ndarray


def read_detections(
    images: Rows, number: Mapping[int, int], by_name: Mapping[str, int]
) -> DetectionRows:
    """Read detections with "category_id" or "label", "bbox" and "score".

    Raises:
        DataError: a field is missing or no finite number.
    """
    category: list[int] = []
    boxes: list[Any] = []
    scores: list[Any] = []
    for at, rows in enumerate(images):
        try:
            for row in rows:
                if "category_id" in row:
                    category.append(number.get(row["category_id"], -1))
                else:
                    category.append(by_name.get(row["label"], -1))
                boxes.append(row["bbox"])
                scores.append(row["score"])
        except (KeyError, TypeError) as error:
            raise DataError(
                'a detection needs "category_id" or "label", "bbox" and "score", got '
                f"{str(row)[:120]} in image {at}"
            ) from error
    image = np.repeat(np.arange(len(images)), [len(rows) for rows in images])
    box = _numbers(boxes, image, "bbox", "detection", 4)
    # Corners in the wrong order make a box of no area, which COCO would not count at all.
    np.maximum(box[:, 2:], 0, out=box[:, 2:])
    return DetectionRows(
        image=image,
        category=np.array(category, np.int64),
        box=box,
        score=_numbers(scores, image, "score", "detection"),
    )


def read_objects(images: Rows, number: Mapping[int, int]) -> ObjectRows:
    """Read COCO annotations with "category_id", "bbox", and optional "area" and "iscrowd".

    Raises:
        DataError: a field is missing or no finite number, a size is negative, or a category does
            not exist.
    """
    category: list[int] = []
    boxes: list[Any] = []
    areas: list[Any] = []
    is_crowd: list[bool] = []
    for at, rows in enumerate(images):
        try:
            for row in rows:
                category.append(number[row["category_id"]])
                boxes.append(row["bbox"])
                areas.append(row["area"] if "area" in row else row["bbox"][2] * row["bbox"][3])
                is_crowd.append(bool(row.get("iscrowd", 0)))
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                'an object needs "category_id", one of the categories, and "bbox" '
                f"[x, y, width, height], got {str(row)[:120]} in image {at}"
            ) from error
    image = np.repeat(np.arange(len(images)), [len(rows) for rows in images])
    box = _numbers(boxes, image, "bbox", "object", 4)
    if (box[:, 2:] < 0).any():
        bad = int(np.flatnonzero((box[:, 2:] < 0).any(axis=1))[0])
        raise DataError(
            f"an object's box is [x, y, width, height], got {boxes[bad]} in image {image[bad]}; "
            "corners must be turned into sizes"
        )
    return ObjectRows(
        image=image,
        category=np.array(category, np.int64),
        box=box,
        area=_numbers(areas, image, "area", "object"),
        is_crowd=np.array(is_crowd, bool),
    )


def _numbers(
    values: list[Any], image: np.ndarray, field: str, kind: str, *shape: int
) -> np.ndarray:
    """Build float64[N, *shape] of finite numbers."""
    try:
        numbers = np.array(values, np.float64).reshape(len(values), *shape)
        is_finite = np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim)))
    except (TypeError, ValueError):
        numbers, is_finite = np.zeros(0), np.array([_is_right(v, shape) for v in values], bool)
    if not is_finite.all():
        bad = int(np.flatnonzero(~is_finite)[0])
        wanted = "finite number" if not shape else f"list of {shape[0]} finite numbers"
        raise DataError(
            f'"{field}" of a {kind} must be a {wanted}, got {values[bad]!r} in image '
            f"{image[bad]}; correct it, or drop the {kind}"
        )
    return numbers


def _is_right(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        number = np.array(value, np.float64)
    except (TypeError, ValueError):
        return False
    return number.shape == shape and bool(np.isfinite(number).all())
