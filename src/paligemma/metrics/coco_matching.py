"""COCO's greedy matching of boxes, for all images and categories at a time.

A group is one category in one image. In order of falling confidence, each detection takes the free
object of its group that it overlaps most; objects that do not count come last, and a crowd is
never used up. Groups do not touch each other, so the n-th detections of all groups that overlap
anything are matched in one step of NumPy.

Axes: D detections, G objects, A area ranges, T IoU thresholds, M detections with a candidate.
Source: cocodataset/cocoapi PythonAPI/pycocotools/cocoeval.py (evaluateImg), common/maskApi.c.
"""

import itertools

import numpy as np

_MAX_PAIRS = 2_000_000


def match_in_groups(
    boxes_xywh: np.ndarray,
    groups: np.ndarray,
    true_boxes_xywh: np.ndarray,
    true_groups: np.ndarray,
    *,
    is_crowd: np.ndarray,
    is_ignored: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the object that each detection takes.

    Args:
        boxes_xywh: float64[D, 4], sorted by group, most confident first within one.
        groups: int64[D], ascending.
        true_boxes_xywh: float64[G, 4]; their order within a group decides between equal overlaps.
        true_groups: int64[G].
        is_crowd: bool[G].
        is_ignored: bool[A, G], objects that do not count in an area range.
        thresholds: float64[T], ascending.

    Returns:
        int64[M], detections that overlap an object by the least threshold, ascending; and
        int64[M, A, T], the object that each takes, -1 for none.
    """
    least = np.minimum(thresholds, 1 - 1e-10)
    detection, true, iou = _candidates(
        boxes_xywh, groups, true_boxes_xywh, true_groups, is_crowd, float(least[0])
    )
    rows, of_pair = np.unique(detection, return_inverse=True)
    step = place_in_run(groups[rows])
    taken_by = np.full((len(rows), len(is_ignored), len(thresholds)), -1, np.int64)
    is_taken = np.zeros((len(true_boxes_xywh), *taken_by.shape[1:]), bool)
    order = np.argsort(step[of_pair], kind="stable")
    edges = np.searchsorted(step[of_pair][order], np.arange(step.max(initial=-1) + 2))
    for low, high in itertools.pairwise(edges.tolist()):
        pairs = order[low:high]
        candidate, overlap = true[pairs], iou[pairs]
        first = np.flatnonzero(np.diff(of_pair[pairs], prepend=-1))
        own = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(pairs))))
        free = ~is_taken[candidate] | is_crowd[candidate][:, None, None]
        free &= overlap[:, None, None] >= least
        ignored = is_ignored[:, candidate].T[:, :, None]
        worth = np.where(free & ~ignored, overlap[:, None, None], -1.0)
        best = np.maximum.reduceat(worth, first, axis=0)
        if ignored.any():
            second = np.where(free & ignored, overlap[:, None, None], -1.0)
            worth = np.where((best < 0)[own], second, worth)
            best = np.where(best < 0, np.maximum.reduceat(second, first, axis=0), best)
        # Of two equal overlaps the last wins, as in the original.
        is_best = (worth == best[own]) & (worth >= 0)
        last = np.where(is_best, np.arange(len(pairs))[:, None, None], -1)
        chosen = np.maximum.reduceat(last, first, axis=0)
        to = np.where(chosen >= 0, candidate[chosen], -1)
        taken_by[of_pair[pairs[first]]] = to
        at, area, threshold = np.nonzero(to >= 0)
        is_taken[to[at, area, threshold], area, threshold] = True
    return rows, taken_by


def place_in_run(values: np.ndarray) -> np.ndarray:
    """Number each element within its run of equal values: [7, 7, 9] -> [0, 1, 0]."""
    index = np.arange(len(values))
    is_first = np.diff(values, prepend=values[:1] - 1) != 0
    return index - np.maximum.accumulate(np.where(is_first, index, 0))


def overlaps(
    boxes_xywh: np.ndarray, true_boxes_xywh: np.ndarray, is_crowd: np.ndarray
) -> np.ndarray:
    """Compute intersection over union float64[N], over the detection's own area for a crowd."""
    (x, y, w, h), (tx, ty, tw, th) = boxes_xywh.T, true_boxes_xywh.T
    width = np.minimum(w + x, tw + tx) - np.maximum(x, tx)
    height = np.minimum(h + y, th + ty) - np.maximum(y, ty)
    meets = (width > 0) & (height > 0)
    both = width * height
    union = np.where(is_crowd, w * h, w * h + tw * th - both)
    return np.divide(both, union, out=np.zeros(len(both)), where=meets)


def _candidates(
    boxes: np.ndarray,
    groups: np.ndarray,
    true_boxes: np.ndarray,
    true_groups: np.ndarray,
    is_crowd: np.ndarray,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs of one group that overlap enough: detections ascending, objects, overlaps."""
    order = np.argsort(true_groups, kind="stable")
    low = np.searchsorted(true_groups[order], groups, side="left")
    count = np.searchsorted(true_groups[order], groups, side="right") - low
    total = np.cumsum(count)
    num_chunks = int(total[-1]) // _MAX_PAIRS + 1 if len(total) else 0
    cuts = np.searchsorted(total, np.arange(1, num_chunks) * _MAX_PAIRS)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for part in np.split(np.arange(len(boxes)), cuts):
        detection = np.repeat(part, count[part])
        true = order[np.repeat(low[part], count[part]) + place_in_run(detection)]
        iou = overlaps(boxes[detection], true_boxes[true], is_crowd[true])
        keep = iou >= least
        found.append((detection[keep], true[keep], iou[keep]))
    detections, objects, ious = zip(*found, strict=True)
    return np.concatenate(detections), np.concatenate(objects), np.concatenate(ious)
