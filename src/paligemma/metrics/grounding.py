"""Scores of boxes: average precision as COCO's own evaluation computes it.

Axes: D detections of all images, T IoU thresholds.
Source: cocodataset/cocoapi PythonAPI/pycocotools/cocoeval.py (evaluateImg, accumulate), for the
area range "all" and without crowds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.coco_matching import match_in_groups, place_in_run

COCO_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
MAX_DETECTIONS = 100
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBoxes:
    """What was found in one image, and what is there.

    Attributes:
        boxes: float[N, 4], two corners; any axis order and unit, the same as in `true_boxes`.
        labels: N labels.
        scores: float[N] confidences.
        true_boxes: float[M, 4].
        true_labels: M labels.

    Raises:
        DataError: lengths differ, or a number is not finite.
    """

    boxes: np.ndarray
    labels: Sequence[str]
    scores: np.ndarray
    true_boxes: np.ndarray
    true_labels: Sequence[str]

    def __post_init__(self) -> None:
        counts = (self.boxes.shape, np.shape(self.scores), self.true_boxes.shape)
        num, num_true = len(self.labels), len(self.true_labels)
        if counts != ((num, 4), (num,), (num_true, 4)):
            raise DataError(
                f"boxes must be [N, 4] with N labels and N scores, got {counts} for {num} "
                f"labels and {num_true} true labels; pass empty arrays as [0, 4]"
            )
        if not all(np.isfinite(x).all() for x in (self.boxes, self.scores, self.true_boxes)):
            raise DataError("boxes and confidences must be finite numbers; drop the others")


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Detections of one label, or of all labels pooled, in order of falling confidence.

    Attributes:
        image: int64[D], position of each detection's image.
        is_hit: bool[D, T], whether it found an object.
        num_true: int64[images], objects in each image.
    """

    image: np.ndarray
    is_hit: np.ndarray
    num_true: np.ndarray

    def average_precision(self, image_weights: np.ndarray | None = None) -> np.ndarray:
        """Precision, made non-increasing, averaged over 101 recalls.

        Args:
            image_weights: float[images], how often each image counts; once by default.

        Returns:
            float64[T] in [0, 1].

        Raises:
            DataError: there is no object to find.
        """
        weights = np.ones(len(self.num_true)) if image_weights is None else image_weights
        total = float((weights * self.num_true).sum())
        if not total:
            raise DataError("average precision needs objects to find, got none; use more images")
        weight = weights[self.image, None]
        hits = np.cumsum(weight * self.is_hit, axis=0)
        found = np.cumsum(np.broadcast_to(weight, self.is_hit.shape), axis=0)
        precision = hits / (found + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        out = np.zeros(self.is_hit.shape[1])
        for t in range(len(out)):
            at = np.searchsorted(hits[:, t] / total, _RECALLS, side="left")
            out[t] = precision[at[at < len(precision)], t].sum() / len(_RECALLS)
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionMatches:
    """All detections of a set of images, matched with its objects.

    Attributes:
        by_label: matches of every label that some image holds or some detection names.
        pooled: the same detections in one ranking; a detection still has to name the right label.
        thresholds: the T IoU thresholds.
    """

    by_label: dict[str, Matches]
    pooled: Matches
    thresholds: tuple[float, ...] = field(default=COCO_THRESHOLDS)

    def at(self, threshold: float) -> DetectionMatches:
        """The same at one of the thresholds only."""
        t = self.thresholds.index(threshold)

        def cut(one: Matches) -> Matches:
            return Matches(image=one.image, is_hit=one.is_hit[:, t : t + 1], num_true=one.num_true)

        return DetectionMatches(
            by_label={name: cut(one) for name, one in self.by_label.items()},
            pooled=cut(self.pooled),
            thresholds=(threshold,),
        )

    @property
    def true_labels(self) -> list[str]:
        """Labels that have objects; COCO's mean runs over these."""
        return [name for name, one in self.by_label.items() if one.num_true.any()]

    def mean_average_precision(self, image_weights: np.ndarray | None = None) -> np.ndarray:
        """Mean over the labels that have objects: float64[T]; see `Matches.average_precision`."""
        weights = np.ones(len(self.pooled.num_true)) if image_weights is None else image_weights
        present = (self.by_label[name] for name in self.true_labels)
        rows = [one.average_precision(weights) for one in present if weights @ one.num_true > 0]
        if not rows:
            raise DataError("average precision needs objects to find, got none; use more images")
        return np.mean(rows, axis=0)


def match_detections(
    images: Sequence[ImageBoxes], thresholds: Sequence[float] = COCO_THRESHOLDS
) -> DetectionMatches:
    """Match detections with objects, image by image and label by label.

    In order of falling confidence, a detection takes the free object that it overlaps most, if by
    the threshold at least; of a label, an image's 100 most confident detections count.

    Args:
        images: what was found and what is there.
        thresholds: smallest intersection over union that counts.
    """
    labels = sorted({name for image in images for name in (*image.labels, *image.true_labels)})
    index = {name: k for k, name in enumerate(labels)}
    score, box, label_of, image_of = _rows(
        [(one.scores, one.boxes, [index[name] for name in one.labels]) for one in images]
    )
    _, true_box, true_label, true_image = _rows(
        [
            (np.zeros(len(one.true_labels)), one.true_boxes, [index[n] for n in one.true_labels])
            for one in images
        ]
    )
    num_true = np.zeros((len(labels), len(images)), np.int64)
    np.add.at(num_true, (true_label, true_image), 1)
    # One label in one image is a group; within one the most confident come first.
    group = image_of * len(labels) + label_of
    first = np.lexsort((-score, group))
    first = first[place_in_run(group[first]) < MAX_DETECTIONS]
    score, box, label_of, image_of = score[first], box[first], label_of[first], image_of[first]
    rows, taken = match_in_groups(
        _to_xywh(box),
        group[first],
        _to_xywh(true_box),
        true_image * len(labels) + true_label,
        is_crowd=np.zeros(len(true_box), bool),
        is_ignored=np.zeros((1, len(true_box)), bool),
        thresholds=np.asarray(thresholds, np.float64),
    )
    is_hit = np.zeros((len(score), len(thresholds)), bool)
    is_hit[rows] = taken[:, 0] >= 0
    order = np.argsort(-score, kind="stable")

    def ranked(keep: np.ndarray, truth: np.ndarray) -> Matches:
        return Matches(image=image_of[keep], is_hit=is_hit[keep], num_true=truth)

    by_label = {name: ranked(order[label_of[order] == k], num_true[k]) for name, k in index.items()}
    pooled = ranked(order, num_true.sum(axis=0))
    return DetectionMatches(by_label=by_label, pooled=pooled, thresholds=tuple(thresholds))


def _rows(
    images: Sequence[tuple[np.ndarray, np.ndarray, Sequence[int]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, boxes and labels of all images in one row each, and the image of every row."""
    counts = [len(labels) for _, _, labels in images]
    return (
        np.concatenate([np.zeros(0), *(scores for scores, _, _ in images)]),
        np.concatenate([np.zeros((0, 4)), *(boxes for _, boxes, _ in images)]),
        np.concatenate([np.zeros(0, np.int64), *(np.array(n, np.int64) for _, _, n in images)]),
        np.repeat(np.arange(len(images)), counts),
    )


def _to_xywh(corners: np.ndarray) -> np.ndarray:
    return np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
