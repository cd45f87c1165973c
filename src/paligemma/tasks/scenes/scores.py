"""How answers about drawn pictures are scored, one by one and together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paligemma.example import Example, FoundObject, Prediction
from paligemma.metrics.detection import FIGURES, CocoStatistic, match_images
from paligemma.metrics.measure import Measure, Statistic, ratio_measure
from paligemma.metrics.pairs import edit_distance
from paligemma.outputs.boxes import distinct_places
from paligemma.outputs.masks import mask_iou
from paligemma.outputs.rle import decode_rle, encode_rle
from paligemma.scenes import THINGS, Scene, SceneExample
from paligemma.tasks.scoring import coco_bbox, coco_results

SCENE_KINDS: tuple[str, ...] = ("detect", "segment", "answer", "ocr", "caption", "caption_region")
# The headline figure of each kind.
METRICS: dict[str, str] = {
    "detect": "ap50",
    "segment": "miou",
    "answer": "accuracy",
    "ocr": "cer",
    "caption": "exact_match",
    "caption_region": "exact_match",
}
# Of two boxes of one label that overlap more, only the likelier counts as distinct.
_MAX_OVERLAP = 0.5
# The slice of all things.
_THINGS = "things"


def references_of(scene: Scene, example: SceneExample) -> dict[str, Any]:
    """Build what an answer is compared with: words, or objects with box and mask.

    Returns:
        `task`, one of SCENE_KINDS; `slice`, by which its score is broken down (kind of question,
        label of the mask, number of objects that a caption names); and `text` or `objects`. JSON
        can hold all of it.
    """
    found: dict[str, Any] = {"task": example.task, "slice": example.kind}
    if example.task == "caption":
        num = len(scene.objects)
        found["slice"] = _of_objects(num)
    if example.suffix is not None:
        return {**found, "text": example.suffix}
    objects: list[dict[str, Any]] = []
    for k, label in zip(example.objects, example.labels, strict=True):
        row: dict[str, Any] = {"label": label, "box_yxyx": list(scene.objects[k].box_yxyx)}
        if example.task == "segment":
            row["mask"] = encode_rle(scene.mask(k))
        objects.append(row)
    if example.task == "segment":
        label = scene.objects[example.objects[0]].label
        found["slice"] = _THINGS if label in THINGS else label
    return {**found, "objects": objects}


def _of_objects(number: int) -> str:
    """The slice of pictures with so many objects."""
    return f"{number} object{'s' if number > 1 else ''}"


def score_answer(example: Example, answer: Prediction) -> tuple[float, float]:
    """Score one answer of any kind but "detect".

    Returns:
        Numerator and denominator: IoU of the joined masks over 1, edited characters over
        characters of the reference, or equality of the words over 1.
    """
    truth: Mapping[str, Any] = example.references
    text = answer.text.strip()
    if truth["task"] == "segment":
        return _joined_iou(truth["objects"], answer), 1.0
    if truth["task"] == "ocr":
        return float(edit_distance(text, truth["text"])), float(len(truth["text"]))
    return float(text in (truth["text"], *truth.get("others", ()))), 1.0


def _joined_iou(
    objects: Sequence[Mapping[str, Any]], answer: Prediction, *, filled: bool = False
) -> float:
    """Overlap of all masks of the answer with all objects that were meant; 0 without a mask.

    Args:
        filled: takes the whole box of each mask instead.
    """
    truth = np.any([decode_rle(one["mask"]) for one in objects], axis=0)
    found = np.zeros_like(truth)
    for one in answer.objects:
        if one.mask is not None and filled:
            y0, x0, y1, x1 = (round(v * found.shape[k % 2]) for k, v in enumerate(one.box_yxyx))
            found[y0:y1, x0:x1] = True
        elif one.mask is not None:
            found |= decode_rle(one.mask)
    return mask_iou(found, truth)


def score_scenes(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute the headline of every kind that was asked, then all other figures with slices."""
    kinds = np.array([one.references["task"] for one in examples])
    by_kind: list[list[Measure]] = []
    for kind in SCENE_KINDS:
        where = kinds == kind
        if not where.any():
            continue
        measures = _detection_measures if kind == "detect" else _ratio_measures
        by_kind.append(measures(kind, examples, predictions, where))
    return [first for first, *_ in by_kind] + [one for _, *others in by_kind for one in others]


def _ratio_measures(
    kind: str, examples: Sequence[Example], predictions: Sequence[Prediction], where: np.ndarray
) -> list[Measure]:
    """The score of a kind and its slices; for "ocr" also the share read without a fault, for
    "segment" also the score of the answer's boxes, filled, and its slices.
    """
    scores = np.zeros((len(examples), 2))
    for k in np.flatnonzero(where).tolist():
        scores[k] = score_answer(examples[k], predictions[k])
    parts, totals = scores.T
    groups = np.array([one.references["slice"] for one in examples])
    slices = sorted(set(groups[where].tolist()))

    def with_slices(name: str, parts: np.ndarray) -> list[Measure]:
        members = {name: where}
        if len(slices) > 1:
            members |= {f"{name}/{group}": where & (groups == group) for group in slices}
        return [
            ratio_measure(name, parts * chosen, totals * chosen, is_error=kind == "ocr")
            for name, chosen in members.items()
        ]

    found = with_slices(f"{kind}_{METRICS[kind]}", parts)
    if kind == "ocr":
        found.append(ratio_measure("ocr_exact_match", (parts == 0) & where, where))
    if kind == "segment":
        # What a mask is worth: the overlap where the boxes of the answer are filled.
        filled = np.zeros(len(examples))
        for k in np.flatnonzero(where).tolist():
            filled[k] = _joined_iou(examples[k].references["objects"], predictions[k], filled=True)
        found += with_slices("segment_miou_filled_boxes", filled)
    return found


def _distinct(objects: Sequence[FoundObject]) -> tuple[FoundObject, ...]:
    """Without boxes of one label that overlap a likelier one."""
    places = distinct_places(
        [one.label for one in objects],
        [one.box_yxyx for one in objects],
        [one.score for one in objects],
        _MAX_OVERLAP,
    )
    return tuple(objects[place] for place in places)


def _detection_measures(
    kind: str, examples: Sequence[Example], predictions: Sequence[Prediction], where: np.ndarray
) -> list[Measure]:
    """Average precision: COCO's mean over labels, each label, and one ranking of all labels."""
    positions = np.flatnonzero(where)
    found = [coco_results(predictions[k]) for k in positions.tolist()]
    true = [
        [
            {"label": one["label"], "bbox": coco_bbox(one["box_yxyx"])}
            for one in examples[k].references["objects"]
        ]
        for k in positions.tolist()
    ]
    distinct = [
        coco_results(replace(predictions[k], objects=_distinct(predictions[k].objects)))
        for k in positions.tolist()
    ]
    labels = sorted({row["label"] for rows in true for row in rows})
    number = {label: k for k, label in enumerate(labels)}
    numbered = [[{**row, "category_id": number[row["label"]]} for row in rows] for rows in true]
    matches = match_images(found, numbered, dict(enumerate(labels)))
    of_distinct = match_images(distinct, numbered, dict(enumerate(labels)))
    # In one ranking of all labels a box still has to name the right one: each label of a picture
    # is matched as a picture of its own, with a single category.
    parts = [
        (
            picture,
            [row for row in found[picture] if row["label"] == label],
            [row for row in true[picture] if row["label"] == label],
        )
        for picture in range(len(positions))
        for label in sorted({row["label"] for row in (*found[picture], *true[picture])})
    ]
    picture_of = np.array([picture for picture, _, _ in parts], np.int64)
    pooled = match_images(
        [[{**row, "category_id": 0} for row in rows] for _, rows, _ in parts],
        [[{**row, "category_id": 0} for row in rows] for _, _, rows in parts],
        {0: "object"},
    )

    def over_parts(statistic: Statistic) -> Statistic:
        return lambda weights: statistic(weights[picture_of])

    def hits(weights: np.ndarray) -> float:
        return float(weights[pooled.image[pooled.row]] @ pooled.is_hit["all"][0])

    def recall(weights: np.ndarray) -> float:
        total = float(weights @ pooled.num_true["all"][0])
        return hits(weights) / total if total else float("nan")

    def precision(weights: np.ndarray) -> float:
        total = float(weights[pooled.image].sum())
        return hits(weights) / total if total else float("nan")

    # Shapes, digits and signs one by one; two hundred things together.
    groups = {label: [k] for label, k in number.items() if label not in THINGS}
    if things := [k for label, k in number.items() if label in THINGS]:
        groups[_THINGS] = things
    sizes = np.array([len(rows) for rows in true])
    of_size = {
        f"ap50_distinct/{_of_objects(size)}": sizes == size
        for size in sorted(set(sizes.tolist()) - {0})
    }

    def in_those(chosen: np.ndarray) -> Statistic:
        return lambda weights: in_distinct(weights * chosen)

    ap50 = FIGURES["AP50"]
    in_distinct = CocoStatistic(matches=of_distinct, figure=ap50)
    statistics: dict[str, Statistic] = {
        "ap50": CocoStatistic(matches=matches, figure=ap50),
        "ap50_distinct": in_distinct,
        **{name: in_those(chosen) for name, chosen in of_size.items()},
        **{
            f"ap50/{name}": CocoStatistic(matches=matches, figure=ap50, categories=members)
            for name, members in groups.items()
        },
        "ap": CocoStatistic(matches=matches, figure=FIGURES["AP"]),
        "ap50_pooled": over_parts(CocoStatistic(matches=pooled, figure=ap50)),
        "recall50": over_parts(recall),
        "precision50": over_parts(precision),
    }

    def over_all(statistic: Statistic) -> Statistic:
        return lambda weights: statistic(weights[positions])

    num_used = {
        f"ap50/{name}": int((matches.num_true["all"][members].sum(axis=0) > 0).sum())
        for name, members in groups.items()
    }
    num_used |= {name: int(chosen.sum()) for name, chosen in of_size.items()}
    return [
        Measure(
            name=f"{kind}_{name}",
            statistic=over_all(statistic),
            num=len(examples),
            num_used=num_used.get(name, len(positions)),
        )
        for name, statistic in statistics.items()
    ]
