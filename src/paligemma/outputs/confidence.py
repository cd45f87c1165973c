"""Confidences of an object from the probabilities of its tokens."""

from collections.abc import Sequence

import numpy as np

from paligemma.outputs.boxes import as_box
from paligemma.outputs.types import ObjectScores, TokenRecord
from paligemma.vocab import NUM_LOC

DEFAULT_TOLERANCE = 0.01


def score_object(
    record: TokenRecord,
    *,
    bins: Sequence[int],
    loc: Sequence[int],
    seg: Sequence[int] | None,
    label: tuple[int, int] | None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> ObjectScores:
    """Confidence of one object from the probabilities of its tokens.

    The confidence of a coordinate is the probability that the model puts within `tolerance` of the
    emitted bin (a neighbouring bin is no disagreement), or the token's own probability where the
    distribution is unknown. The box score is the geometric mean of the four, the mask score that of
    the sixteen codewords, the label score the product of the label's tokens; the score multiplies
    the parts that exist. A probability that is not a number counts as 0.

    Args:
        loc, seg, label: positions of the object's tokens in the record; of a label start and end.
        tolerance: distance that still counts as agreement, as a share of the axis; 0.01 is ten
            bins.

    Returns:
        Scores in [0, 1]; expected coordinate and deviation in bins where `loc_probs` is given.
    """
    probs = np.exp(clean_logprobs(record.logprobs))
    expected = std = None
    if record.loc_probs is None:
        coordinates = [probs[t] for t in loc]
    else:
        rows = np.nan_to_num(record.loc_probs[list(loc)].astype(np.float64), posinf=0)
        rows = np.clip(rows, 0, 1)
        reach = round(tolerance * (NUM_LOC - 1))
        coordinates = [
            min(1.0, row[max(0, b - reach) : b + reach + 1].sum())
            for row, b in zip(rows, bins, strict=True)
        ]
        moments = [_mean_and_std(row, b) for row, b in zip(rows, bins, strict=True)]
        expected, std = as_box(m for m, _ in moments), as_box(s for _, s in moments)
    box_score = _geometric_mean(coordinates)
    mask_score = None if seg is None else _geometric_mean(probs[list(seg)])
    label_score = None if label is None else float(probs[slice(*label)].prod())
    parts = [p for p in (box_score, label_score, mask_score) if p is not None]
    return ObjectScores(
        box_score=box_score,
        label_score=label_score,
        mask_score=mask_score,
        score=float(np.prod(parts)),
        expected_yxyx=expected,
        std_yxyx=std,
    )


def clean_logprobs(logprobs: np.ndarray) -> np.ndarray:
    """float64 log-probabilities, at most 0; what is not a number counts as impossible."""
    values = np.minimum(logprobs.astype(np.float64), 0)
    return np.where(np.isnan(values), -np.inf, values)


def _geometric_mean(probs: Sequence[float] | np.ndarray) -> float:
    values = np.asarray(probs, np.float64)
    return float(np.prod(values ** (1 / len(values))))


def _mean_and_std(row: np.ndarray, emitted: int) -> tuple[float, float]:
    """Mean and deviation of a distribution over bins; the emitted bin where it holds no mass."""
    total = row.sum()
    if total <= 0:
        return float(emitted), 0.0
    bins = np.arange(len(row))
    mean = float((row * bins).sum() / total)
    return mean, float(np.sqrt((row * (bins - mean) ** 2).sum() / total))
