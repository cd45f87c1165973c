"""Detections in the formats of other tools: JSON, COCO, YOLO, supervision, PNG.

A box without height or width is kept in JSON, marked `"valid": false`; the other formats cannot say
that, so such boxes are left out there and counted in a log message.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.errors import DataError, MissingExtraError
from paligemma.outputs.types import Detection, Detections
from paligemma.whole_file import whole_file

if TYPE_CHECKING:
    from PIL import Image

NO_LABEL = "object"

# Less than a pixel takes the staircase off a slanted outline and moves nothing visibly.
_TOLERANCE_PX = 0.75

_log = logging.getLogger(__name__)


def to_json(detections: Detections) -> list[dict[str, Any]]:
    """One plain record an object.

    Returns:
      `{"label", "score", "box_xyxy_px", "box_yxyx"}`, with `"mask"` (COCO run lengths) where there
      is one and `"valid": false` where the box is empty or swapped.
    """
    records = []
    for item in detections:
        record: dict[str, Any] = {
            "label": item.label,
            "score": None if item.score is None else round(item.score, 6),
            "box_xyxy_px": [round(v, 2) for v in item.box_xyxy_px],
            "box_yxyx": [round(v, 6) for v in item.box_yxyx],
        }
        if item.region is not None:
            record["mask"] = item.region.to_rle()
        if not item.is_valid:
            record["valid"] = False
        records.append(record)
    return records


def to_coco(
    detections: Detections,
    *,
    image_id: int = 1,
    category_ids: Mapping[str, int] | None = None,
    polygons: bool = False,
    first_id: int = 1,
) -> list[dict[str, Any]]:
    """COCO annotations of one image; with scores they are also COCO results.

    Args:
      detections: the objects.
      image_id: id of the image.
      category_ids: id of each label; by default labels count from 1 in alphabetical order.
      polygons: write masks as polygons (holes filled) instead of run lengths.
      first_id: id of the first annotation.

    Returns:
      `{"id", "image_id", "category_id", "bbox": [x, y, w, h], "area", "iscrowd": 0}`, with "score"
      and "segmentation" where known.

    Raises:
      DataError: a label is not in `category_ids`.
    """
    kept = _valid(detections, "COCO")
    if category_ids is None:
        category_ids = {label: i for i, label in enumerate(label_names([detections]), start=1)}
    records = []
    for number, item in enumerate(kept, start=first_id):
        x0, y0, x1, y1 = item.box_xyxy_px
        record: dict[str, Any] = {
            "id": number,
            "image_id": image_id,
            "category_id": _look_up(item, category_ids, "category_ids"),
            "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
            "area": round((x1 - x0) * (y1 - y0), 2),
            "iscrowd": 0,
        }
        if item.score is not None:
            record["score"] = item.score
        if item.region is not None:
            record["area"] = item.region.area_px
            rings = item.region.to_polygons(tolerance_px=_TOLERANCE_PX) if polygons else []
            # An empty mask has no polygon, and COCO's readers refuse an empty list.
            record["segmentation"] = [r.ravel().tolist() for r in rings] or item.region.to_rle()
        records.append(record)
    return records


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
        records += to_coco(
            item, image_id=image_id, category_ids=category_ids, first_id=len(records) + 1
        )
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    return {"images": files, "annotations": records, "categories": categories}


def to_yolo(
    detections: Detections,
    *,
    class_names: Sequence[str] | None = None,
    polygons: bool = False,
    with_scores: bool = False,
) -> str:
    """The text of a YOLO label file, one line an object.

    Args:
      detections: the objects.
      class_names: the position of a label is its class; by default labels in alphabetical order.
      polygons: write `class x y x y ...` of the largest outline (the box's corners without a mask)
        instead of `class cx cy w h`.
      with_scores: append the confidence, as ultralytics does with `save_conf`.

    Returns:
      Lines ending in a newline; coordinates normalised to [0, 1], clipped to the image.

    Raises:
      DataError: a label is not in `class_names`.
    """
    kept = _valid(detections, "YOLO")
    names = label_names([detections]) if class_names is None else class_names
    classes = {name: i for i, name in enumerate(names)}
    lines = []
    for item in kept:
        y0, x0, y1, x1 = (min(max(v, 0.0), 1.0) for v in item.box_yxyx)
        numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
        if polygons:
            numbers = [x0, y0, x1, y0, x1, y1, x0, y1]
            rings = item.region.to_polygons(tolerance_px=_TOLERANCE_PX) if item.region else []
            if rings:
                numbers = (rings[0] / item.image_wh).ravel().tolist()
        if with_scores and item.score is not None:
            numbers.append(item.score)
        values = " ".join(f"{v:.6f}" for v in numbers)
        lines.append(f"{_look_up(item, classes, 'class_names')} {values}\n")
    return "".join(lines)


def to_supervision(detections: Detections, *, class_names: Sequence[str] | None = None) -> Any:
    """`supervision.Detections` with masks, confidences and class names.

    Args:
      detections: the objects; where any has a mask, those without get their filled box.
      class_names: the position of a label is its class id; by default labels in alphabetical order.

    Raises:
      MissingExtraError: supervision is not installed.
      DataError: a label is not in `class_names`.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingExtraError(
            "to_supervision needs the package supervision, which is not installed; run "
            "pip install 'paligemma[supervision]'."
        ) from error
    kept = _valid(detections, "supervision")
    if not kept:
        return supervision.Detections.empty()
    names = label_names([detections]) if class_names is None else class_names
    classes = {name: i for i, name in enumerate(names)}
    scores = [item.score for item in kept]
    known = [s for s in scores if s is not None]
    return supervision.Detections(
        xyxy=np.array([item.box_xyxy_px for item in kept], np.float32),
        mask=np.stack([_mask_or_box(i) for i in kept]) if any(i.region for i in kept) else None,
        confidence=np.array(known, np.float32) if len(known) == len(scores) else None,
        class_id=np.array([_look_up(item, classes, "class_names") for item in kept]),
        data={"class_name": np.array([item.label or NO_LABEL for item in kept])},
    )


def label_names(many: Iterable[Detections]) -> list[str]:
    """Every label of the valid objects, alphabetical; objects without one are called "object"."""
    return sorted({item.label or NO_LABEL for d in many for item in d if item.is_valid})


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Writes a picture as PNG, whole or not at all.

    Raises:
      DataError: the path does not end in .png or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"A picture is saved as .png, but the path is {path}; rename it.")
    try:
        with whole_file(path) as partial:
            picture.save(partial)
    except OSError as error:
        raise DataError(
            f"A picture needs a place that can be written, but {path} is not ({error.strerror}); "
            "choose another path."
        ) from error


def _valid(detections: Detections, format_name: str) -> list[Detection]:
    kept = [item for item in detections if item.is_valid]
    if len(kept) < len(detections):
        _log.warning(
            "%d of %d boxes have no height or width and are left out of the %s export",
            len(detections) - len(kept),
            len(detections),
            format_name,
        )
    return kept


def _look_up(item: Detection, classes: Mapping[str, int], argument: str) -> int:
    label = item.label or NO_LABEL
    if label not in classes:
        raise DataError(
            f"Every label must be in {argument}, but {label!r} is not; add it, filter the "
            f"detections, or leave {argument} out."
        )
    return classes[label]


def _mask_or_box(item: Detection) -> np.ndarray:
    mask = item.mask
    if mask is None:
        width, height = item.image_wh
        x0, y0, x1, y1 = (round(v) for v in item.box_xyxy_px)
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = True
    return mask
