"""Detections in the formats of other tools: COCO, YOLO, supervision, PNG.

These formats have no place for a box without height or width, so such boxes are left out here and
counted in a log message; JSON keeps them (`words.detections_json`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.errors import DataError, MissingExtraError
from paligemma.outputs.types import Detection
from paligemma.whole_file import SOFTWARE, whole_file

if TYPE_CHECKING:
    from PIL import Image

# Less than a pixel takes the staircase off a slanted outline and moves nothing visibly.
_TOLERANCE_PX = 0.75
# What stands in no YAML as it is, or ends a line there.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")

logger = logging.getLogger(__name__)


def to_coco(
    items: Sequence[Detection],
    *,
    image_id: int = 1,
    category_ids: Mapping[str, int],
    polygons: bool = False,
    first_id: int = 1,
) -> list[dict[str, Any]]:
    """COCO annotations of one image; with scores they are also COCO results.

    Args:
        polygons: whether masks are written as polygons (holes filled) instead of run lengths.

    Returns:
        `{"id", "image_id", "category_id", "bbox": [x, y, w, h], "area", "iscrowd": 0}`, with
        "score" and "segmentation" where known.

    Raises:
        DataError: a label is not in `category_ids`.
    """
    records = []
    for number, item in enumerate(_valid(items, "COCO"), start=first_id):
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


def to_yolo(
    items: Sequence[Detection],
    *,
    class_names: Sequence[str],
    polygons: bool = False,
    with_scores: bool = False,
) -> str:
    """The text of a YOLO label file, one line per object.

    Args:
        class_names: labels; the position of a label is its class.
        polygons: whether a line is `class x y x y ...` of the largest outline (the box's corners
            where there is no mask) instead of `class cx cy w h`.
        with_scores: whether a line ends in the confidence, as ultralytics writes it with
            `save_conf`.

    Returns:
        Lines ending in a newline; coordinates normalised to [0, 1], clipped to the image.

    Raises:
        DataError: a label is not in `class_names`.
    """
    classes = {name: i for i, name in enumerate(class_names)}
    lines = []
    for item in _valid(items, "YOLO"):
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


def yolo_names(class_names: Sequence[str]) -> str:
    """The text of YOLO's data.yaml with the names of its classes, in UTF-8 for any reader."""
    lines = (f"  {number}: {_quoted_in_yaml(name)}\n" for number, name in enumerate(class_names))
    return "".join(["names:\n", *lines])


def _quoted_in_yaml(text: str) -> str:
    """The text as a scalar in double quotes, which are those of JSON; YAML refuses or folds more
    characters (YAML 1.1, sections 5.1 and 5.4)."""
    quoted = json.dumps(text, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def to_supervision(items: Sequence[Detection], *, class_names: Sequence[str]) -> Any:
    """`supervision.Detections` with masks, confidences and class names.

    Args:
        items: the objects; where any has a mask, that of those without is empty, `has_mask` of
            the data is then False, and a warning counts them.
        class_names: labels; the position of a label is its class id.

    Raises:
        MissingExtraError: supervision is not installed.
        DataError: a label is not in `class_names`.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingExtraError(
            "to_supervision needs the package supervision, which is not installed; run "
            "pip install 'paligemma[supervision]'"
        ) from error
    kept = _valid(items, "supervision")
    if not kept:
        return supervision.Detections.empty()
    classes = {name: i for i, name in enumerate(class_names)}
    scores = [item.score for item in kept]
    known = [s for s in scores if s is not None]
    masks = stacked_masks(kept)
    has_mask = np.array([item.region is not None for item in kept])
    if masks is not None and not has_mask.all():
        logger.warning(
            "%d of %d objects have no mask, and theirs is empty in supervision; see "
            "data['has_mask']",
            (~has_mask).sum(),
            len(kept),
        )
    return supervision.Detections(
        xyxy=np.array([item.box_xyxy_px for item in kept], np.float32),
        mask=masks,
        confidence=np.array(known, np.float32) if len(known) == len(scores) else None,
        class_id=np.array([_look_up(item, classes, "class_names") for item in kept]),
        data={"class_name": np.array([item.name for item in kept]), "has_mask": has_mask},
    )


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        DataError: the path does not end in .png or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"a picture is saved as .png, got {path}; rename it")
    try:
        from PIL.PngImagePlugin import PngInfo

        mark = PngInfo()
        mark.add_text("Software", SOFTWARE)  # by which `require_free` knows it again
        with whole_file(path) as partial:
            picture.save(partial, pnginfo=mark)
    except OSError as error:
        raise DataError(
            f"a picture needs a place that can be written, {path} is not one ({error.strerror}); "
            "choose another path"
        ) from error


def _valid(items: Sequence[Detection], format_name: str) -> list[Detection]:
    kept = [item for item in items if item.is_valid]
    if len(kept) < len(items):
        logger.warning(
            "%d of %d boxes have no height or width and are left out of the %s export",
            len(items) - len(kept),
            len(items),
            format_name,
        )
    return kept


def _look_up(item: Detection, classes: Mapping[str, int], argument: str) -> int:
    if item.name not in classes:
        raise DataError(
            f"every label must be in {argument}, {item.name!r} is not; add it, filter the "
            f"detections, or leave {argument} out"
        )
    return classes[item.name]


def stacked_masks(items: Sequence[Detection]) -> np.ndarray | None:
    """bool[N, H, W], empty for objects without a mask; None where none has one."""
    if not any(item.region is not None for item in items):
        return None
    width, height = items[0].image_wh
    masks = np.zeros((len(items), height, width), bool)
    for item, mask in zip(items, masks, strict=True):
        if item.region is not None:
            mask[:] = item.region.to_array()
    return masks
