"""Vectors of places and structure: masks, boxes, words, tables, detections."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.eval.vectors import Check, Params, by_name, per_example
from paligemma.metrics.detection import coco_summary
from paligemma.metrics.grits import GridScore, grits_con, grits_top, read_cells
from paligemma.metrics.segmentation import ObjectMask, read_object, referring_measures
from paligemma.metrics.spotting import count_words, spotting_measures
from paligemma.metrics.teds import table_similarity
from paligemma.outputs.boxes import decode_boxes, encode_boxes, format_loc

MAX_PIXELS = 2**24
_MAP = 64

# What the vectors call the figures of `spotting_measures`.
_SPOTTING = {
    f"{theirs}-{figure}": f"{ours}_{name}"
    for theirs, ours in (("Det", "det"), ("E2E", "e2e"))
    for figure, name in (
        ("Recall", "recall"),
        ("Precision", "precision"),
        ("Fscore", "f1"),
        ("Tightness", "tightness"),
        ("PQ", "pq"),
    )
}


def drawn_mask(shape: Mapping[str, Any]) -> np.ndarray:
    """A mask from its description: bool[height, width].

    Args:
        shape: "height", "width", and "rects" [y0, x0, y1, x1), half-open, or "disks" [cy, cx, r]
            of set pixels.

    Raises:
        DataError: more than 16 million pixels, or none.
    """
    height, width = int(shape["height"]), int(shape["width"])
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(f"a mask needs 1 to {MAX_PIXELS} pixels, got {height} by {width}")
    mask = np.zeros((height, width), bool)
    for y0, x0, y1, x1 in shape.get("rects", ()):
        mask[y0:y1, x0:x1] = True
    rows, columns = np.ogrid[:height, :width]
    for cy, cx, radius in shape.get("disks", ()):
        mask |= (rows - cy) ** 2 + (columns - cx) ** 2 <= radius**2
    return mask


def drawn_map(shape: Mapping[str, Any]) -> np.ndarray:
    """A decoded map of a mask from its description: float32[64, 64].

    Args:
        shape: "ramp" [first, last] along "axis" ("x" by default), or "background" and "rects"
            [y0, x0, y1, x1, value], half-open.
    """
    if "ramp" in shape:
        first, last = (float(end) for end in shape["ramp"])
        across = np.broadcast_to(np.linspace(first, last, _MAP), (_MAP, _MAP)).astype(np.float32)
        return across.T if shape.get("axis") == "y" else across
    values = np.full((_MAP, _MAP), shape["background"], np.float32)
    for y0, x0, y1, x1, value in shape.get("rects", ()):
        values[y0:y1, x0:x1] = value
    return values


def _referring(predictions: Any, references: Any, params: Params) -> dict[str, Any]:
    found, truths = [], []
    for prediction, shape in zip(predictions, references, strict=True):
        mask = drawn_mask(shape)
        values = drawn_map(prediction["mask64"])
        # "txt" stands for any token of ordinary text.
        text = "".join("a" if name == "txt" else f"<{name}>" for name in prediction["tokens"])
        size_wh = (mask.shape[1], mask.shape[0])
        found.append(read_object(text, size_wh, lambda _, values=values: values))  # type: ignore[misc]
        truths.append(ObjectMask(box_yxyx=tuple(shape["bbox"]), mask=mask))
    measures = referring_measures(found, truths)
    num_invalid = sum(one is None for one in found)
    return by_name(measures) | {
        "iou_per_example": per_example(measures[0]),
        "invalid": num_invalid,
        "total": len(found),
    }


def _loc_tokens(predictions: Any, references: Any, params: Params) -> dict[str, Any]:
    bins = encode_boxes(references)
    return {"encoded": format_loc(bins), "decoded": [float(one) for one in decode_boxes(bins)]}


def _spotting(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    counts = count_words(predictions, references)
    values = by_name(spotting_measures(predictions, references))
    figures = {theirs: values[ours] for theirs, ours in _SPOTTING.items()}
    return figures | {
        "tp_det": float(counts.found.sum()),
        "tp_e2e": float(counts.read.sum()),
        "num_gt": float(counts.num_true.sum()),
        "num_pred": float(counts.num_predicted.sum()),
    }


def _teds(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    return {
        "teds": table_similarity(predictions, references),
        "teds_struct": table_similarity(predictions, references, structure_only=True),
    }


def _grits(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    wanted, found = read_cells(references), read_cells(predictions)
    if not wanted:
        raise DataError("the reference of a table must be well-formed; escape & and close all tags")
    values: dict[str, float] = {}
    for name, score in (("top", grits_top), ("con", grits_con)):
        nothing = GridScore(f1=0.0, precision=0.0, recall=0.0)
        one = nothing if found is None else score(found, wanted)
        values[f"grits_{name}"] = one.f1
        values[f"grits_precision_{name}"] = one.precision
        values[f"grits_recall_{name}"] = one.recall
    return values


CHECKS: dict[str, Check] = {
    "referring_segmentation": _referring,
    "loc_tokens": _loc_tokens,
    "text_spotting_hiertext": _spotting,
    "teds": _teds,
    "grits": _grits,
    "detection_map": lambda found, truth, params: coco_summary(found, truth),
}
