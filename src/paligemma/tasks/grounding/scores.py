"""Scorers of detection and of referring segmentation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.metrics.segmentation import ObjectMask, referring_measures
from paligemma.outputs.boxes import decode_boxes
from paligemma.vocab import NUM_LOC, NUM_SEG, SEG_PER_MASK

_ANSWER = re.compile(rf"((?:<loc\d{{4}}>){{4}})((?:<seg\d{{3}}>){{{SEG_PER_MASK}}})")


def score_detection(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    classes: Sequence[str] | None = None,
) -> list[Measure]:
    """COCO's average precision and recall, and average precision by class.

    Args:
        examples: of `read_detection`.
        predictions: their objects, each with a confidence.
        classes: names that may be found; None takes those that were asked for.
    """
    from paligemma.metrics.detection import detection_measures

    if not examples:
        raise DataError("average precision needs pictures, got none")
    names = list(classes or examples[0].references["classes"])
    number = {name: k for k, name in enumerate(names, start=1)}
    references, found = [], []
    for example, prediction in zip(examples, predictions, strict=True):
        if (
            bare := next((one for one in prediction.objects if one.score is None), None)
        ) is not None:
            raise DataError(
                "average precision ranks boxes, so each needs a confidence; the prediction of "
                f"{example.id} has none for {bare.label[:80]!r}: write its score, or 1 for all"
            )
        references.append(_numbered(example, number))
        height, width = example.references["size_hw"]
        found.append(
            [
                {
                    "label": one.label,
                    "bbox": _bbox(one.box_yxyx, height, width),
                    "score": one.score,
                }
                for one in prediction.objects
            ]
        )
    categories = {k: name for name, k in number.items()}
    return detection_measures(found, references, categories, by_class=True)


def _numbered(example: Example, number: dict[str, int]) -> list[dict[str, Any]]:
    rows = []
    for row in example.references["objects"]:
        if row["label"] not in number:
            raise DataError(
                f"picture {example.id} holds the class {row['label']!r}, which the benchmark does "
                f"not have among its {len(number)}; check the annotation file"
            )
        rows.append({**row, "category_id": number[row["label"]]})
    return rows


def _bbox(box_yxyx: Sequence[float], height: int, width: int) -> list[float]:
    y0, x0, y1, x1 = box_yxyx
    return [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]


def score_referring(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """MIoU, cIoU and box accuracies; an answer counts if it begins with a box and a mask.

    Raises:
        DataError: an answer holds mask tokens but its prediction no decoded mask.
    """
    truths = [
        ObjectMask(
            box_yxyx=tuple(one.references["box_yxyx"]),
            mask=one.references["mask"],
        )
        for one in examples
    ]
    found = [
        _named_object(prediction, example.references["mask"]["size"])
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    return referring_measures(found, truths)


def _named_object(prediction: Prediction, size_hw: Sequence[int]) -> ObjectMask | None:
    """The object of an answer; None where the reference evaluator counts it as invalid."""
    match = _ANSWER.match(prediction.text)
    if match is None:
        return None
    bins = [int(n) for n in re.findall(r"\d{4}", match[1])]
    codes = [int(n) for n in re.findall(r"\d{3}", match[2])]
    if max(bins) >= NUM_LOC or max(codes) >= NUM_SEG:
        return None
    box = decode_boxes(bins)
    # Edges are truncated to whole pixels; a box without any is invalid.
    y0, x0, y1, x1 = (box * np.array([*size_hw] * 2, np.float32)).astype(int).tolist()
    if y1 <= y0 or x1 <= x0:
        return None
    mask = prediction.objects[0].mask if prediction.objects else None
    if mask is None:
        raise DataError(
            f"prediction {prediction.id} writes a mask as tokens, but its decoded mask is missing; "
            "name the codec with --mask-codec, or add the run lengths"
        )
    ymin, xmin, ymax, xmax = box.tolist()
    return ObjectMask(box_yxyx=(ymin, xmin, ymax, xmax), mask=mask)
