"""Word spotting by the HierText protocol: words found, and words found and read.

Source: google-research-datasets/hiertext `evaluator/evaluator.py` and `polygon_ops.py`, words as
polygons. A word and a prediction match where each is the other's best and they overlap by half;
predictions mostly inside a region that nobody needs to read are dropped first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.extras import missing_extra
from paligemma.metrics.measure import Measure, Statistic
from paligemma.metrics.pairs import require_same_length

logger = logging.getLogger(__name__)

MIN_WORD_IOU = 0.5
MAX_DONT_CARE = 0.5
MAX_VERTICES = 1000
_EPSILON = 1e-5  # of the original, added to areas and unions


@dataclass(frozen=True, kw_only=True, eq=False)
class SpottingCounts:
    """Counts from which every figure is computed, float64[images] each.

    Attributes:
        read: number of those with the text of the word.
        found_iou, read_iou: sums of their overlaps.
        num_empty: number of predictions without an area, which count and match nothing.
    """

    num_true: np.ndarray
    num_predicted: np.ndarray
    found: np.ndarray
    read: np.ndarray
    found_iou: np.ndarray
    read_iou: np.ndarray
    num_empty: np.ndarray


def spotting_measures(
    predictions: Sequence[Sequence[Mapping[str, Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
    *,
    axis_aligned: bool = False,
) -> list[Measure]:
    """Compute recall, precision, F1, tightness and panoptic quality of words.

    Counts are pooled over images. As in the original, a side that is empty scores 1.

    Args:
        predictions: words of each image, {"vertices": [[x, y], ...], "text": str}; any unit,
            pixels by convention.
        references: true words, likewise, with "legible": False for words of no concern (True
            where absent). Crossing outlines are repaired, on both sides; a word without an area
            counts and is never found.
        axis_aligned: replace the references by the upright boxes around them, since a model
            writes only such boxes.

    Returns:
        "e2e_f1", "e2e_precision", "e2e_recall", "e2e_tightness", "e2e_pq", where a word must also
        be read rightly, then "det_..." of the same for its place alone.

    Raises:
        DataError: lengths differ, or a row is malformed.
        MissingExtraError: shapely is not installed.
    """
    counts = count_words(predictions, references, axis_aligned=axis_aligned)
    if not counts.num_true.sum() and not axis_aligned:
        logger.warning(
            "none of %d images has a legible word, so recall counts as 1, as in the original; use "
            "more images",
            len(references),
        )
    return [
        *_measures("e2e", counts, counts.read, counts.read_iou),
        *_measures("det", counts, counts.found, counts.found_iou),
    ]


def count_words(
    predictions: Sequence[Sequence[Mapping[str, Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
    *,
    axis_aligned: bool = False,
) -> SpottingCounts:
    """Match words image by image; see `spotting_measures`."""
    require_same_length("word spotting", predictions=predictions, references=references)
    names = [field.name for field in fields(SpottingCounts)]
    rows = np.zeros((len(references), len(names)))
    for number, (found, truth) in enumerate(zip(predictions, references, strict=True)):
        rows[number] = _count_image(
            _words(found, f"prediction of image {number}"),
            _words(truth, f"reference of image {number}", upright=axis_aligned),
        )
    return SpottingCounts(**dict(zip(names, rows.T, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Words:
    """Words of one image: object[N] geometries and texts, float64[N] areas, bool[N] who counts."""

    shapes: np.ndarray
    areas: np.ndarray
    texts: np.ndarray
    is_legible: np.ndarray

    def take(self, keep: np.ndarray) -> _Words:
        return _Words(**{name: values[keep] for name, values in vars(self).items()})


def _words(rows: Sequence[Mapping[str, Any]], where: str, *, upright: bool = False) -> _Words:
    try:
        import shapely
    except ImportError as error:
        raise missing_extra("shapely", "eval", "word spotting") from error
    shapes = np.empty(len(rows), object)
    for n, row in enumerate(rows):
        corners = _vertices(row, where)
        if upright:
            (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
            corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        shape = shapely.Polygon(corners)
        shapes[n] = shape if shape.is_valid else shapely.make_valid(shape)
    areas = np.asarray(shapely.area(shapes), np.float64)
    return _Words(
        shapes=shapes,
        areas=areas,
        texts=np.array([str(row.get("text", "")) for row in rows], object),
        is_legible=np.array([bool(row.get("legible", True)) for row in rows], bool),
    )


def _vertices(row: Mapping[str, Any], where: str) -> np.ndarray:
    try:
        corners = np.asarray(row["vertices"], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{where} needs "vertices" [[x, y], ...], got {str(row)[:80]}') from error
    if corners.ndim != 2 or corners.shape[1] != 2 or not 3 <= len(corners) <= MAX_VERTICES:
        raise DataError(
            f"{where} needs 3 to {MAX_VERTICES} vertices of two numbers, got shape {corners.shape}"
        )
    if not np.isfinite(corners).all():
        raise DataError(f"{where} needs finite coordinates, got {str(row['vertices'])[:80]}")
    return corners


def _count_image(found: _Words, truth: _Words) -> tuple[float, ...]:
    """Compute the counts of one image, in the order of `SpottingCounts`."""
    ignored, wanted = truth.take(~truth.is_legible), truth.take(truth.is_legible)
    if len(ignored.texts) and len(found.texts):
        inside = _intersections(found, ignored) / (found.areas[:, None] + _EPSILON)
        found = found.take(inside.max(axis=1) < MAX_DONT_CARE)
    num_found = num_read = 0
    found_iou = read_iou = 0.0
    if len(wanted.texts) and len(found.texts):
        both = _intersections(wanted, found)
        iou = both / (wanted.areas[:, None] + found.areas[None] - both + _EPSILON)
        best_word = iou.argmax(axis=0)
        for word, other in enumerate(iou.argmax(axis=1).tolist()):
            overlap = float(iou[word, other])
            if overlap < MIN_WORD_IOU or best_word[other] != word:
                continue
            num_found, found_iou = num_found + 1, found_iou + overlap
            if found.texts[other] == wanted.texts[word]:
                num_read, read_iou = num_read + 1, read_iou + overlap
    num_empty = int((found.areas < _EPSILON).sum())
    sizes = len(wanted.texts), len(found.texts)
    return *sizes, num_found, num_read, found_iou, read_iou, num_empty


def _intersections(a: _Words, b: _Words) -> np.ndarray:
    """Compute common areas float64[A, B], cutting outlines only where their boxes meet."""
    import shapely

    box_a, box_b = shapely.bounds(a.shapes)[:, None], shapely.bounds(b.shapes)[None]
    low = np.maximum(box_a[..., :2], box_b[..., :2])
    high = np.minimum(box_a[..., 2:], box_b[..., 2:])
    meets = (high > low).all(axis=-1)
    meets &= (a.areas[:, None] >= _EPSILON) & (b.areas[None] >= _EPSILON)
    out = np.zeros(meets.shape)
    first, second = np.nonzero(meets)
    out[first, second] = shapely.area(shapely.intersection(a.shapes[first], b.shapes[second]))
    return out


def _measures(
    prefix: str, counts: SpottingCounts, hits: np.ndarray, overlap: np.ndarray
) -> list[Measure]:
    def share(weights: np.ndarray, parts: np.ndarray, totals: np.ndarray) -> float:
        total = float(weights @ totals)
        return float(weights @ parts) / total if total else 1.0

    def f1(weights: np.ndarray) -> float:
        p, r = statistics["precision"](weights), statistics["recall"](weights)
        return 2 * r * p / (r + p) if r + p else 0.0

    statistics: dict[str, Statistic] = {
        "f1": f1,
        "precision": lambda weights: share(weights, hits, counts.num_predicted),
        "recall": lambda weights: share(weights, hits, counts.num_true),
        "tightness": lambda weights: share(weights, overlap, hits),
        "pq": lambda weights: statistics["tightness"](weights) * f1(weights),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        by_image = 2 * hits / (counts.num_true + counts.num_predicted)
    return [
        Measure(
            name=f"{prefix}_{name}",
            statistic=statistic,
            num=len(hits),
            num_used=int((counts.num_true > 0).sum()),
            per_example=by_image if name == "f1" else None,
        )
        for name, statistic in statistics.items()
    ]
