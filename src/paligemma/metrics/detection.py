"""COCO's twelve figures of boxes, with crowds, area ranges and limits of detections.

Images are matched once, all of them at a time in NumPy; figures are then accumulated for any
weights of the images, and with weights of one they are pycocotools' own, to the last bit,
where annotation ids are unique and not 0: others it loses, and here they count.

Axes: D detections, G objects, K categories, T IoU thresholds, L = 4 * T lanes (an area range at a
threshold; areas outermost), M detections that match in some lane.
Source: cocodataset/cocoapi PythonAPI/pycocotools/cocoeval.py and common/maskApi.c (bbIou).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.coco_matching import match_in_groups, place_in_run
from paligemma.metrics.coco_rows import read_detections, read_objects
from paligemma.metrics.measure import Measure, ratio_measure
from paligemma.metrics.pairs import require_same_length

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
MAX_DETECTIONS = (1, 10, 100)
UNDEFINED = -1.0

_AREAS = tuple(AREA_RANGES)
_T = len(IOU_THRESHOLDS)


@dataclass(frozen=True, kw_only=True)
class CocoFigure:
    """One of the twelve figures: average precision or recall, its area range and its limits."""

    name: str
    is_recall: bool = False
    area: str = "all"
    threshold: int | None = None
    max_detections: int = 100


FIGURES = {
    "AP": CocoFigure(name="ap"),
    "AP50": CocoFigure(name="ap50", threshold=0),
    "AP75": CocoFigure(name="ap75", threshold=5),
    "APs": CocoFigure(name="ap_small", area="small"),
    "APm": CocoFigure(name="ap_medium", area="medium"),
    "APl": CocoFigure(name="ap_large", area="large"),
    "AR1": CocoFigure(name="ar1", is_recall=True, max_detections=1),
    "AR10": CocoFigure(name="ar10", is_recall=True, max_detections=10),
    "AR100": CocoFigure(name="ar100", is_recall=True),
    "ARs": CocoFigure(name="ar_small", is_recall=True, area="small"),
    "ARm": CocoFigure(name="ar_medium", is_recall=True, area="medium"),
    "ARl": CocoFigure(name="ar_large", is_recall=True, area="large"),
}


def detection_measures(
    predictions: Sequence[Sequence[Mapping[str, Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
    categories: Mapping[int, str],
    *,
    by_class: bool = False,
) -> list[Measure]:
    """Compute average precision and recall of boxes over images.

    Images are ranked in the order given, which decides between equal confidences; pycocotools'
    order is that of their ids.

    Args:
        predictions: detections of each image, {"category_id": int or "label": a name of
            `categories`, "bbox": [x, y, width, height] in pixels, "score": float}. One of another
            category counts for "unknown" alone. One without width or height is kept and finds
            nothing.
        references: COCO annotations of each image, {"category_id", "bbox", "area" (of the box
            by default), "iscrowd" (0 by default)}.
        categories: name of every category that may be found, by its id.
        by_class: also return "ap/NAME" of every category that has objects.

    Returns:
        "ap" (IoU 0.50:0.95, at most 100 detections), "ap50", "ap75", "ap_small", "ap_medium",
        "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"; those of an area
        range without objects are left out. Then the classes, and "unknown", the share of
        detections that name no category, where there are detections.

    Raises:
        DataError: lengths differ, a row is malformed, a confidence is missing or no number, or no
            image holds an object that counts.
    """
    matches = match_images(predictions, references, categories)
    if not matches.num_true["all"].any():
        raise DataError("average precision needs objects to find, got none; use more images")
    measures = [
        Measure(
            name=figure.name,
            statistic=CocoStatistic(matches=matches, figure=figure),
            num=matches.num_images,
        )
        for figure in FIGURES.values()
        if matches.num_true[figure.area].any()
    ]
    if by_class:
        measures += [
            Measure(
                name=f"ap/{name}",
                statistic=CocoStatistic(matches=matches, figure=FIGURES["AP"], categories=[k]),
                num=matches.num_images,
                num_used=int((matches.num_true["all"][k] > 0).sum()),
            )
            for k, name in enumerate(matches.names)
            if matches.num_true["all"][k].any()
        ]
    if matches.num_detections.any():
        measures.append(
            ratio_measure("unknown", matches.num_unknown, matches.num_detections, is_error=True)
        )
    return measures


def coco_summary(
    results: Sequence[Mapping[str, Any]], dataset: Mapping[str, Any]
) -> dict[str, float]:
    """Compute the twelve figures of `COCOeval.summarize`, -1 where an area range is empty.

    Args:
        results: COCO's results, {"image_id", "category_id", "bbox", "score"}.
        dataset: COCO's ground truth, {"images", "annotations", "categories"}.

    Returns:
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl".

    Raises:
        DataError: a row is malformed, or names an image that does not exist.
    """
    predictions, references, categories = from_coco(results, dataset)
    return match_images(predictions, references, categories).summary()


def from_coco(
    results: Sequence[Mapping[str, Any]], dataset: Mapping[str, Any]
) -> tuple[list[list[Mapping[str, Any]]], list[list[Mapping[str, Any]]], dict[int, str]]:
    """Turn COCO's two files into arguments of `detection_measures`, images in order of ids."""
    position = {image: n for n, image in enumerate(sorted({i["id"] for i in dataset["images"]}))}
    found: list[list[Mapping[str, Any]]] = [[] for _ in position]
    true: list[list[Mapping[str, Any]]] = [[] for _ in position]
    for rows, lists, kind in ((results, found, "result"), (dataset["annotations"], true, "object")):
        for row in rows:
            at = position.get(row["image_id"])
            if at is None:
                raise DataError(
                    f"every {kind} must lie in an image of the dataset, got image "
                    f"{row['image_id']!r}; drop it or use the dataset it belongs to"
                )
            lists[at].append(row)
    return found, true, {c["id"]: str(c["name"]) for c in dataset["categories"]}


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoMatches:
    """Detections matched with objects, ranked by category and falling confidence.

    Attributes:
        image: int64[D], position of each detection's image.
        starts: int64[K + 1], where each category's detections begin.
        rank: int64[D], the detection's place within its image and category.
        is_inside: area range -> bool[D], whether a detection's own area lies inside.
        row: int64[M], the detections with a match.
        is_hit: area range -> bool[T, M], whether it finds an object that counts.
        change: area range -> int8[T, M], 1 where a detection counts for its match alone, -1 where
            it matches an object that does not count.
        has_changes: area range -> bool[K], whether a category has any.
        num_true: area range -> int64[K, images], objects that count.
        num_detections, num_unknown: int64[images], of all detections, and of unknown categories.
    """

    names: list[str]
    image: np.ndarray
    starts: np.ndarray
    rank: np.ndarray
    is_inside: dict[str, np.ndarray]
    row: np.ndarray
    is_hit: dict[str, np.ndarray]
    change: dict[str, np.ndarray]
    has_changes: dict[str, np.ndarray]
    num_true: dict[str, np.ndarray]
    num_detections: np.ndarray
    num_unknown: np.ndarray

    @property
    def num_images(self) -> int:
        """Number of images, those without objects included."""
        return len(self.num_detections)

    def summary(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """Compute the twelve figures for float[images] weights, -1 where undefined."""
        used = np.ones(self.num_images, np.int64) if weights is None else weights
        out = {}
        for name, figure in FIGURES.items():
            value = CocoStatistic(matches=self, figure=figure)(used)
            out[name] = UNDEFINED if np.isnan(value) else value
        return out

    def precision(
        self, weights: np.ndarray, area: str, thresholds: slice, categories: Sequence[int]
    ) -> np.ndarray:
        """Interpolate precision: float64[T, 101, K], NaN where a category has no objects."""
        num_thresholds = len(IOU_THRESHOLDS[thresholds])
        out = np.full((num_thresholds, len(RECALLS), len(categories)), np.nan)
        for at, k in enumerate(categories):
            total = float(weights @ self.num_true[area][k])
            if not total:
                continue
            out[:, :, at] = 0.0
            low, high = self.starts[k], self.starts[k + 1]
            first, last = np.searchsorted(self.row, (low, high))
            if first == last:
                continue
            weight = weights[self.image[low:high]]
            # Only matched detections raise recall; of the others it is enough to know how many
            # come before. Where a match changes whether a detection counts, that is corrected.
            seen = np.cumsum(weight * self.is_inside[area][low:high])
            rows = self.row[first:last] - low
            own = weight[rows]
            num_seen = seen[rows] + np.spacing(1)
            if self.has_changes[area][k]:
                changed = np.cumsum(own * self.change[area][thresholds, first:last], axis=1)
                num_seen = (seen[rows] + changed) + np.spacing(1)
            hits = np.cumsum(own * self.is_hit[area][thresholds, first:last], axis=1)
            exact = hits / num_seen
            best = np.maximum.accumulate(exact[:, ::-1], axis=1)[:, ::-1]
            reached = hits / total
            for t in range(num_thresholds):
                place = np.searchsorted(reached[t], RECALLS, side="left")
                place = place[place < len(rows)]  # recalls ascend, so only the last are missing
                out[t, : len(place), at] = best[t, place]
        return out

    def recall(self, weights: np.ndarray, area: str, max_detections: int) -> np.ndarray:
        """Compute the share of objects that are found: float64[T, K], NaN where there are none."""
        total = (self.num_true[area] @ weights).astype(float)
        thresholds, rows = np.nonzero(self.is_hit[area])
        at = self.row[rows]
        category = np.searchsorted(self.starts, at, side="right") - 1
        weight = weights[self.image[at]] * (self.rank[at] < max_detections)
        size = (_T, len(self.names))
        place = np.ravel_multi_index((thresholds, category), size)
        found = np.bincount(place, weight, minlength=_T * len(self.names)).reshape(size)
        return np.divide(found, total, out=np.full(size, np.nan), where=total > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoStatistic:
    """One figure as a function of how often each image counts.

    Attributes:
        categories: places of the categories that precision is a mean over; None takes all.
    """

    matches: CocoMatches
    figure: CocoFigure
    categories: Sequence[int] | None = None

    def __call__(self, weights: np.ndarray) -> float:
        figure, matches = self.figure, self.matches
        if figure.is_recall:
            values = matches.recall(weights, figure.area, figure.max_detections)
        else:
            t = figure.threshold
            chosen = slice(0, _T) if t is None else slice(t, t + 1)
            only = range(len(matches.names)) if self.categories is None else self.categories
            values = matches.precision(weights, figure.area, chosen, only)
        values = values[~np.isnan(values)]
        return float(np.mean(values)) if len(values) else float("nan")


def match_images(
    predictions: Sequence[Sequence[Mapping[str, Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
    categories: Mapping[int, str],
) -> CocoMatches:
    """Match the detections of all images; see `detection_measures`."""
    require_same_length("average precision", predictions=predictions, references=references)
    ids = sorted(categories)
    number = {category: k for k, category in enumerate(ids)}
    by_name = {categories[category]: k for k, category in enumerate(ids)}
    if len(by_name) != len(ids):
        raise DataError(f"categories must have different names, got {list(categories.values())}")
    num_images = len(references)
    found = read_detections(predictions, number, by_name)
    true = read_objects(references, number)

    known = found.category >= 0
    num_detections = np.bincount(found.image, minlength=num_images)
    num_unknown = np.bincount(found.image[~known], minlength=num_images)
    found = found.take(known)
    # Most confident first within image and category; lexsort keeps the order of equal ones.
    found = found.take(np.lexsort((-found.score, found.category, found.image)))
    rank = place_in_run(found.image * len(ids) + found.category)
    kept = rank < MAX_DETECTIONS[-1]
    found, rank = found.take(kept), rank[kept]

    is_inside = np.stack([(found.area >= a) & (found.area <= b) for a, b in AREA_RANGES.values()])
    outside = np.stack([(true.area < a) | (true.area > b) for a, b in AREA_RANGES.values()])
    is_ignored = outside | true.is_crowd
    matched, matched_to = match_in_groups(
        found.box,
        found.image * len(ids) + found.category,
        true.box,
        true.image * len(ids) + true.category,
        is_crowd=true.is_crowd,
        is_ignored=is_ignored,
        thresholds=IOU_THRESHOLDS,
    )
    order = np.lexsort((-found.score, found.category))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    by_rank = np.argsort(place[matched])
    row, matched_to = place[matched][by_rank], matched_to[by_rank]
    is_inside = is_inside[:, order]
    starts = np.searchsorted(found.category[order], np.arange(len(ids) + 1))
    category_of_row = np.searchsorted(starts, row, side="right") - 1
    is_hit, change, has_changes, num_true = {}, {}, {}, {}
    size = (len(ids), num_images)
    for a, area in enumerate(_AREAS):
        to = np.ascontiguousarray(matched_to[:, a].T)  # [T, M], -1 is none
        hit = np.append(~is_ignored[a], False)[to]
        inside = is_inside[a][row]
        is_hit[area] = hit
        change[area] = np.where(to >= 0, hit.astype(np.int8) - inside, 0).astype(np.int8)
        changing = category_of_row[change[area].any(axis=0)]
        has_changes[area] = np.bincount(changing, minlength=len(ids)) > 0
        used = ~is_ignored[a]
        pair = true.category[used] * num_images + true.image[used]
        num_true[area] = np.bincount(pair, minlength=size[0] * size[1]).reshape(size)
    return CocoMatches(
        names=[categories[category] for category in ids],
        image=found.image[order],
        starts=starts,
        rank=rank[order],
        is_inside=dict(zip(_AREAS, is_inside, strict=True)),
        row=row,
        is_hit=is_hit,
        change=change,
        has_changes=has_changes,
        num_true=num_true,
        num_detections=num_detections,
        num_unknown=num_unknown,
    )
