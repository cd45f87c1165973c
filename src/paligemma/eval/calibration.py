"""How far confidences can be believed, and what makes them honest.

A temperature divides the log-odds of confidences; it is fitted by likelihood of hit or miss. Then
every label gets the threshold that serves its objects best.

Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, sections 2 and 4.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paligemma.errors import ConfigError, DataError
from paligemma.eval.outcomes import Outcomes, has_objects, object_outcomes, text_outcomes
from paligemma.eval.scored import Scored
from paligemma.outputs.calibration import (
    EPSILON,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Calibration,
    ObjectCalibration,
    TextCalibration,
    tempered,
)

NUM_BINS = 15
# A label with fewer hits takes the threshold of all labels together.
MIN_HITS = 3
_NEVER = 2.0
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers of like confidence.

    Attributes:
        confidence: their mean confidence; 0 without any.
    """

    low: float
    high: float
    num: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How confidences compare with what came true.

    Attributes:
        bins: equally wide bins from 0 to 1.
        ece: mean distance of a bin's confidence from its accuracy, weighted by its answers.
        brier: mean squared distance of confidence from hit (1) or miss (0).
        nll: mean negative log-likelihood of hit or miss, in nats.
    """

    bins: tuple[Bin, ...]
    ece: float
    brier: float
    nll: float
    num: int

    def to_json(self) -> dict[str, Any]:
        """The three figures, rounded, and their number."""
        figures = {"ece": self.ece, "brier": self.brier, "nll": self.nll}
        return {name: round(value, 6) for name, value in figures.items()} | {"num": self.num}


def reliability(
    confidence: np.ndarray, is_hit: np.ndarray, *, num_bins: int = NUM_BINS
) -> Reliability:
    """Compare confidences float[D] in [0, 1] with hits bool[D]."""
    if not len(confidence):
        raise DataError("reliability needs at least one answer with a confidence, got none")
    p, y = np.asarray(confidence, np.float64), np.asarray(is_hit, np.float64)
    place = np.minimum((p * num_bins).astype(int), num_bins - 1)
    bins, ece = [], 0.0
    for k in range(num_bins):
        own = place == k
        num = int(own.sum())
        mean, share = (float(p[own].mean()), float(y[own].mean())) if num else (0.0, 0.0)
        ece += num / len(p) * abs(mean - share)
        bins.append(
            Bin(low=k / num_bins, high=(k + 1) / num_bins, num=num, confidence=mean, accuracy=share)
        )
    return Reliability(
        bins=tuple(bins),
        ece=ece,
        brier=float(np.mean((p - y) ** 2)),
        nll=negative_log_likelihood(p, y, 1.0),
        num=len(p),
    )


def negative_log_likelihood(
    confidence: np.ndarray, is_hit: np.ndarray, temperature: float
) -> float:
    """Mean over answers of minus the log of the tempered probability of what came true, nats."""
    p = np.clip(np.asarray(confidence, np.float64), EPSILON, 1 - EPSILON)
    logit = (np.log(p) - np.log1p(-p)) / temperature
    return float(np.mean(np.logaddexp(0.0, np.where(is_hit, -logit, logit))))


def fit_temperature(confidence: np.ndarray, is_hit: np.ndarray) -> float:
    """The temperature under which hits and misses are most likely.

    The likelihood is convex in the inverse temperature, so that it falls to one minimum; a golden
    section over the logarithm finds it.

    Raises:
        DataError: no hit or no miss, which leaves it without a minimum.
    """
    hits, num = int(np.sum(is_hit)), len(is_hit)
    if not 0 < hits < num:
        raise DataError(
            f"a temperature is fitted on hits and misses, got {hits} hits of {num}; use a larger "
            "or a harder run"
        )

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(confidence, is_hit, math.exp(log_temperature))

    return math.exp(_least(loss, math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)))


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum in [low, high] is least, to 1e-9."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    while high - low > 1e-9:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = function(b)
    return (low + high) / 2


def best_threshold(
    confidence: np.ndarray, is_hit: np.ndarray, num_true: int, *, precision: float | None = None
) -> tuple[float, float]:
    """The threshold of one label: objects at or above it are shown.

    Args:
        confidence: float[D].
        is_hit: bool[D].
        precision: the lowest threshold at which at least this share is right; by default the one
            with the best F1.

    Returns:
        Threshold and the F1, or the precision, that it reaches; a threshold above 1 (show nothing)
        and 0 where no hit, or no such precision, can be had.
    """
    order = np.argsort(-confidence, kind="stable")
    p, hits = confidence[order], np.cumsum(is_hit[order])
    # Objects of one confidence are shown together or not at all.
    ends = np.flatnonzero(np.append(p[1:] < p[:-1], True)) if len(p) else np.array([], int)
    if not len(ends) or not hits[-1]:
        return _NEVER, 0.0
    found, right = ends + 1, hits[ends]
    if precision is None:
        value = 2 * right / (found + num_true)
        best = int(np.argmax(value))
    else:
        value = right / found
        reached = np.flatnonzero(value >= precision)
        if not len(reached):
            return _NEVER, 0.0
        best = int(reached[-1])
    return float(p[ends[best]]), float(value[best])


def fit_objects(
    outcomes: Outcomes,
    *,
    precision: float | None = None,
    origin: Mapping[str, Any] | None = None,
) -> ObjectCalibration:
    """Temperature of all boxes together, then a threshold for each label on tempered confidences.

    Args:
        origin: facts about the run, kept beside the figures of the fit.

    Raises:
        ConfigError: a precision outside (0, 1].
    """
    if precision is not None and not 0 < precision <= 1:
        raise ConfigError(f"precision must lie in (0, 1], got {precision:g}")
    temperature = fit_temperature(outcomes.confidence, outcomes.is_hit)
    p = tempered(outcomes.confidence, temperature)
    num_true = sum(outcomes.num_true.values())
    default, reached = best_threshold(p, outcomes.is_hit, num_true, precision=precision)
    labels = np.array(outcomes.label, object)
    thresholds = {}
    for name in sorted(set(outcomes.num_true) | set(outcomes.label)):
        own = labels == name
        if int(outcomes.is_hit[own].sum()) >= MIN_HITS:
            thresholds[name], _ = best_threshold(
                p[own], outcomes.is_hit[own], outcomes.num_true.get(name, 0), precision=precision
            )
    goal = "best F1 at IoU 0.5" if precision is None else f"precision {precision:g} at IoU 0.5"
    fitted_on = {**(origin or {}), "goal": goal, "reached_by_all_labels": round(reached, 6)}
    return ObjectCalibration(
        temperature=temperature,
        thresholds=thresholds,
        default_threshold=default,
        fitted_on={**fitted_on, **_figures(outcomes), "num_true": num_true},
    )


def fit_text(outcomes: Outcomes, *, origin: Mapping[str, Any] | None = None) -> TextCalibration:
    """Temperature of answers in words; arguments as for `fit_objects`."""
    return TextCalibration(
        temperature=fit_temperature(outcomes.confidence, outcomes.is_hit),
        fitted_on={**(origin or {}), **_figures(outcomes)},
    )


def calibrate(
    scored: Scored, *, precision: float | None = None, before: Calibration | None = None
) -> Calibration:
    """Fit what a run's answers allow: boxes where the task asks for objects, else words.

    Args:
        scored: a run on a split that will not be reported.
        precision: see `best_threshold`; for boxes.

    Raises:
        DataError: answers without confidences, no hit, or no miss.
    """
    config = scored.config
    origin = {
        "task": config.task,
        "split": config.split,
        "model": config.model,
        "run": config.key,
        "num_examples": len(scored.examples),
    }
    before = before or Calibration()
    if has_objects(scored):
        outcomes = object_outcomes(scored)
        return replace(before, objects=fit_objects(outcomes, precision=precision, origin=origin))
    if precision is not None:
        raise ConfigError(
            f"a precision is wanted of boxes, but {config.task} is answered in words; leave it out"
        )
    return replace(before, text=fit_text(text_outcomes(scored), origin=origin))


def _figures(outcomes: Outcomes) -> dict[str, Any]:
    """Reliability before, and after on examples that each fit had not seen."""
    before = reliability(outcomes.confidence, outcomes.is_hit)
    figures: dict[str, Any] = {"before": before.to_json()}
    after = held_out(outcomes)
    if after is not None:
        figures["held_out"] = after.to_json()
    return {**figures, "num_hits": int(outcomes.is_hit.sum())}


def held_out(outcomes: Outcomes) -> Reliability | None:
    """Reliability when every second example is tempered as the others ask; None if that fails."""
    p = np.array(outcomes.confidence, np.float64)
    second = outcomes.image % 2 == 1
    for seen in (second, ~second):
        try:
            temperature = fit_temperature(outcomes.confidence[seen], outcomes.is_hit[seen])
        except DataError:
            return None
        p[~seen] = tempered(outcomes.confidence[~seen], temperature)
    return reliability(p, outcomes.is_hit)
