"""How well each single example was answered, to find the worst ones and to compare two runs."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from paligemma.errors import DataError
from paligemma.eval.calibration import best_threshold
from paligemma.eval.outcomes import has_objects, matched, object_outcomes, true_objects
from paligemma.eval.scored import Scored
from paligemma.example import Prediction


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleScores:
    """A score for each example.

    Attributes:
        values: float64[N]; NaN where it does not apply.
        threshold: boxes below this confidence do not count; 0 counts all.
    """

    name: str
    values: np.ndarray
    is_error: bool = False
    threshold: float = 0.0

    def is_right(self, position: int) -> bool:
        """Whether an answer has all of its score, or no error; one without a score has."""
        value = float(self.values[position])
        return not (value > 0 if self.is_error else value < 1 - 1e-9)


def example_scores(scored: Scored) -> ExampleScores | None:
    """Scores of single examples: parts of the headline, or F1 of boxes where it has none.

    Returns:
        None where a figure has no parts and answers are no boxes.
    """
    parts = scored.per_example
    if parts is not None:
        name, is_error = scored.headline.name, scored.headline.is_error
        return ExampleScores(name=name, values=parts, is_error=is_error)
    return _box_scores(scored) if has_objects(scored) else None


def _box_scores(scored: Scored) -> ExampleScores:
    """F1 at IoU 0.5 of the boxes above the confidence at which F1 over all pictures is best.

    Answers to "all classes" hold very many boxes, most of them rightly with little confidence.
    """
    try:
        outcomes = object_outcomes(scored)
        num_true = sum(outcomes.num_true.values())
        threshold, _ = best_threshold(outcomes.confidence, outcomes.is_hit, num_true)
    except DataError:  # no box has a confidence
        threshold = 0.0
    # Where nothing was hit at all every box counts.
    threshold = threshold if threshold <= 1 else 0.0
    values = np.full(len(scored.examples), np.nan)
    for k, (example, answer) in enumerate(zip(scored.examples, scored.predictions, strict=True)):
        truth = true_objects(example.references)
        if truth is None:
            continue
        shown = [one for one in answer.objects if one.score is None or one.score >= threshold]
        outcome = Counter(is_hit for _, is_hit in matched(shown, truth))
        there = sum(not one.is_ignored for one in truth)
        total = outcome[True] + outcome[False] + there
        values[k] = 2 * outcome[True] / total if total else 1.0
    return ExampleScores(name="F1", values=values, threshold=threshold)


def worst(scored: Scored, scores: ExampleScores | None, num: int) -> list[int]:
    """Positions of the worst examples: of equally bad ones, those the model was surest of.

    A wrong answer that the model was sure of shows more than one that it was unsure of.
    """
    if scores is None:
        return []
    badness = scores.values if scores.is_error else -scores.values
    sure = np.array([confidence(one) for one in scored.predictions])
    usable = np.flatnonzero(np.isfinite(badness))
    order = np.lexsort((usable, -sure[usable], -badness[usable]))
    return [int(usable[k]) for k in order[:num]]


def confidence(prediction: Prediction) -> float:
    """The largest of an answer's boxes, else the probability of its words; 0 where unknown."""
    scores = [one.score for one in prediction.objects if one.score is not None]
    if scores:
        return max(scores)
    if prediction.logprob is not None:
        return float(math.exp(min(prediction.logprob, 0.0)))
    return 0.0
