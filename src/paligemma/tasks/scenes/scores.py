"""How answers about drawn pictures are scored, one by one and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paligemma.example import Example, Prediction
from paligemma.metrics.grounding import ImageBoxes, Matches, match_detections
from paligemma.metrics.measure import Measure, Statistic, ratio_measure
from paligemma.metrics.text import edit_distance
from paligemma.outputs.masks import mask_iou
from paligemma.outputs.rle import decode_rle
from paligemma.scenes import Scene, SceneExample

KINDS: tuple[str, ...] = ("detect", "segment", "answer", "ocr", "caption", "caption_region")
# The figure of each kind; detection has several.
METRICS: dict[str, str] = {
    "segment": "miou",
    "answer": "accuracy",
    "ocr": "cer",
    "caption": "exact_match",
    "caption_region": "exact_match",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneOutcome:
    """One answer, scored.

    Attributes:
        id: of the example.
        task: one of KINDS.
        slice: what the score may be broken down by: the kind of question, or the label of the mask.
        part: numerator of the score: IoU, 1 for a right answer, or edited characters.
        total: denominator: 1, or characters of the reference.
        boxes: for "detect", which is scored over all pictures together; `part` is then 0.
    """

    id: str
    task: str
    slice: str
    part: float
    total: float
    boxes: ImageBoxes | None = None


def references_of(scene: Scene, example: SceneExample) -> dict[str, Any]:
    """What an answer is compared with, as JSON holds it: words, or objects with box and mask."""
    from paligemma.outputs.rle import encode_rle

    found: dict[str, Any] = {"task": example.task, "slice": example.kind}
    if example.suffix is not None:
        return {**found, "text": example.suffix}
    objects: list[dict[str, Any]] = []
    for k, label in zip(example.objects, example.labels, strict=True):
        row: dict[str, Any] = {"label": label, "box_yxyx": list(scene.objects[k].box_yxyx)}
        if example.task == "segment":
            row["mask"] = encode_rle(scene.mask(k))
        objects.append(row)
    if example.task == "segment":
        found["slice"] = scene.objects[example.objects[0]].label
    return {**found, "objects": objects}


def score_answer(example: Example, answer: Prediction) -> SceneOutcome:
    """Score one answer: IoU of the joined masks, equality of words, or edited characters."""
    truth: Mapping[str, Any] = example.references
    task, text = truth["task"], answer.text.strip()
    boxes, part, total = None, 0.0, 1.0
    if task == "detect":
        boxes = _boxes(truth["objects"], answer)
    elif task == "segment":
        part = _joined_iou(truth["objects"], answer)
    elif task == "ocr":
        part, total = float(edit_distance(text, truth["text"])), float(len(truth["text"]))
    else:
        part = float(text == truth["text"])
    return SceneOutcome(
        id=example.id, task=task, slice=truth["slice"], part=part, total=total, boxes=boxes
    )


def _boxes(objects: Sequence[Mapping[str, Any]], answer: Prediction) -> ImageBoxes:
    """Found and true boxes; a box without confidence counts as certain."""
    found = answer.objects
    return ImageBoxes(
        boxes=np.array([one.box_yxyx for one in found], np.float64).reshape(-1, 4),
        labels=[one.label for one in found],
        scores=np.array([1.0 if one.score is None else one.score for one in found], np.float64),
        true_boxes=np.array([one["box_yxyx"] for one in objects], np.float64).reshape(-1, 4),
        true_labels=[one["label"] for one in objects],
    )


def _joined_iou(objects: Sequence[Mapping[str, Any]], answer: Prediction) -> float:
    """Overlap of all masks of the answer with all objects that were meant; 0 without a mask."""
    truth = np.any([decode_rle(one["mask"]) for one in objects], axis=0)
    found = np.zeros_like(truth)
    for one in answer.objects:
        if one.mask is not None:
            found |= decode_rle(one.mask)
    return mask_iou(found, truth)


# Figures over many answers


def score_scenes(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """The figure of every kind that was asked, then all others, each followed by its slices."""
    outcomes = list(map(score_answer, examples, predictions))
    by_kind: list[list[Measure]] = []
    for task in KINDS:
        where = np.array([one.task == task for one in outcomes], bool)
        if where.any():
            by_kind.append(
                _detection_measures(outcomes, where)
                if task == "detect"
                else _ratio_measures(task, outcomes, where)
            )
    return [first for first, *_ in by_kind] + [one for _, *others in by_kind for one in others]


def _ratio_measures(
    task: str, outcomes: Sequence[SceneOutcome], where: np.ndarray
) -> list[Measure]:
    """The score of a kind and its slices; for "ocr" also the share read without a fault."""
    parts = np.array([one.part for one in outcomes])
    totals = np.array([one.total for one in outcomes])
    name, is_error = f"{task}_{METRICS[task]}", task == "ocr"

    def measure(name: str, members: np.ndarray) -> Measure:
        return ratio_measure(name, parts * members, totals * members, is_error=is_error)

    found = [measure(name, where)]
    if task == "ocr":
        found.append(ratio_measure(f"{task}_exact_match", (parts == 0) * where, where))
    groups = np.array([one.slice for one in outcomes])
    slices = sorted(set(groups[where].tolist()))
    if len(slices) > 1:
        found += [measure(f"{name}/{group}", where & (groups == group)) for group in slices]
    return found


def _detection_measures(outcomes: Sequence[SceneOutcome], where: np.ndarray) -> list[Measure]:
    """Average precision: COCO's mean over labels, each label, and one ranking of all labels."""
    matches = match_detections([one.boxes for one in outcomes if one.boxes is not None])
    half, positions = matches.at(0.5), np.flatnonzero(where)
    hits, image = half.pooled.is_hit[:, 0], half.pooled.image

    def measure(name: str, statistic: Statistic, truth: np.ndarray) -> Measure:
        def over_all(weights: np.ndarray) -> float:
            own = weights[positions]
            # Without an object to find, average precision is undefined.
            return float(statistic(own)) if own @ truth else float("nan")

        return Measure(
            name=f"detect_{name}", statistic=over_all, num=len(outcomes), num_used=len(positions)
        )

    def recall(weights: np.ndarray) -> float:
        return float(weights[image] @ hits) / float(weights @ half.pooled.num_true)

    def precision(weights: np.ndarray) -> float:
        found = float(weights[image].sum())
        return float(weights[image] @ hits) / found if found else float("nan")

    def of_label(label: Matches) -> Statistic:
        return lambda weights: float(label.average_precision(weights)[0])

    truth = half.pooled.num_true
    return [
        measure("ap50", lambda w: float(half.mean_average_precision(w)[0]), truth),
        *(
            measure(f"ap50/{name}", of_label(one), one.num_true)
            for name, one in half.by_label.items()
            if one.num_true.any()
        ),
        measure("ap", lambda w: float(matches.mean_average_precision(w).mean()), truth),
        measure("ap50_pooled", lambda w: float(half.pooled.average_precision(w)[0]), truth),
        measure("recall50", recall, truth),
        measure("precision50", precision, truth),
    ]
