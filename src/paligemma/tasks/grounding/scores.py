"""Scorers of detection and of referring segmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.metrics.segmentation import ObjectMask, read_tokens, referring_measures
from paligemma.tasks.scoring import coco_results


def score_detection(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    classes: Sequence[str] | None = None,
) -> list[Measure]:
    """Compute COCO's average precision and recall, and average precision by class.

    Args:
        classes: names that may be found; None takes those of the prompt.
    """
    from paligemma.metrics.detection import detection_measures

    if not examples:
        raise DataError("average precision needs pictures, got none")
    names = list(classes or examples[0].references["classes"])
    number = {name: k for k, name in enumerate(names, start=1)}
    references, found = [], []
    for example, prediction in zip(examples, predictions, strict=True):
        if bare := next((one for one in prediction.objects if one.score is None), None):
            raise DataError(
                "average precision ranks boxes, so each needs a confidence; the prediction of "
                f"{example.id} has none for {bare.label[:80]!r}: write its score, or 1 for all"
            )
        references.append(_numbered(example, number))
        found.append(coco_results(prediction, example.references["size_hw"]))
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


def score_referring(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Compute MIoU, cIoU and box accuracies of answers that begin with a box and a mask.

    Of an answer whose text spells no place, the first of its objects counts.

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
    """Return the object of an answer; None where the reference evaluator calls it invalid."""
    if prediction.objects and "<loc" not in prediction.text:
        first = prediction.objects[0]
        y0, x0, y1, x1 = first.box_yxyx
        is_box = y1 > y0 and x1 > x0
        return ObjectMask(box_yxyx=first.box_yxyx, mask=first.mask) if is_box else None
    tokens = read_tokens(prediction.text)
    if tokens is None:
        return None
    box, _ = tokens
    # Edges are truncated to whole pixels; a box without any is invalid.
    edges = np.array(box, np.float32) * np.array([*size_hw] * 2, np.float32)
    top, left, bottom, right = edges.astype(int).tolist()
    if bottom <= top or right <= left:
        return None
    mask = prediction.objects[0].mask if prediction.objects else None
    if mask is None:
        raise DataError(
            f"prediction {prediction.id} writes a mask as tokens, but its decoded mask is missing; "
            "name the codec with --mask-codec, or add the run lengths"
        )
    return ObjectMask(box_yxyx=box, mask=mask)
