"""Documents and charts: ANLS and relaxed accuracy.

Source: Biten et al., Scene Text Visual Question Answering, 2019, equation 1; big_vision
`evaluators/proj/paligemma/transfers/vqa.py` and `chartqa.py`, `datasets/infovqa`; lmms-eval's
`anls`; the package anls 0.0.2.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.answers import by_group
from paligemma.metrics.measure import Measure, average_of, mean_measure
from paligemma.metrics.pairs import levenshtein, require_answers, require_same_length

logger = logging.getLogger(__name__)

# They differ in white space, in a distance of exactly half, and in empty references:
# "big_vision" leaves white space alone and gives half 0; "server_like" collapses it but divides by
# the lengths before that, and gives half 0.5; "pypi" collapses it and gives half 0.
AnlsVariant = Literal["big_vision", "server_like", "pypi"]

MAX_ORDERED_PARTS = 8
_THRESHOLD = 0.5
_TOLERANCE = 0.05


def anls(
    prediction: str,
    references: Sequence[str],
    *,
    variant: AnlsVariant = "big_vision",
    lower: bool = True,
) -> float:
    """Compute one minus the normalised edit distance to the nearest reference, 0 from half on.

    Args:
        lower: lower-case both sides, which only "big_vision" can leave out.

    Raises:
        DataError: no reference, an unknown variant, or a variant that always lower-cases.
    """
    score = _VARIANTS.get(variant)
    if score is None or not (lower or variant == "big_vision"):
        raise DataError(
            f"ANLS comes as {', '.join(_VARIANTS)}, and only the first keeps case, got {variant!r}"
        )
    require_answers("ANLS", [references])
    if lower and variant == "big_vision":  # the others do so themselves
        prediction, references = prediction.lower(), [one.lower() for one in references]
    return max(score(prediction, one) for one in references)


def anls_measures(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    variant: AnlsVariant = "big_vision",
    any_order: bool = False,
) -> list[Measure]:
    """Compute ANLS of DocVQA, InfoVQA and ST-VQA.

    Args:
        any_order: accept comma-separated references in any order, as on InfoVQA's validation split.
    """
    require_same_length("ANLS", predictions=predictions, references=references)
    require_answers("ANLS", references)
    scores = []
    for prediction, given in zip(predictions, references, strict=True):
        if any_order:
            given = [ordering for one in given for ordering in comma_orderings(one)]
        scores.append(anls(prediction, given, variant=variant))
    return [mean_measure("anls", scores)]


def comma_orderings(answer: str) -> list[str]:
    """List an answer with its parts, separated by ", ", in every order, the written one first.

    With more than eight parts only the written order is kept, with a warning: their orderings
    would be hundreds of thousands.
    """
    parts = answer.split(", ", maxsplit=MAX_ORDERED_PARTS)
    if len(parts) > MAX_ORDERED_PARTS:
        logger.warning(
            "an answer of more than %d parts counts in its written order only: %.60s",
            MAX_ORDERED_PARTS,
            answer,
        )
        return [answer]
    return [", ".join(order) for order in itertools.permutations(parts)]


def chart_number(text: str) -> float | None:
    """Read a number as `float` does, "5%" as 0.05; None for other text."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def is_relaxed_match(prediction: str, reference: str) -> bool:
    """Whether a number is within 5 % of the right one; other answers must be the same string.

    Case aside. A right answer of zero needs the same string; one that reads as infinity or NaN is
    never matched.
    """
    prediction, reference = prediction.lower(), reference.lower()
    number, right = chart_number(prediction), chart_number(reference)
    if number is None or not right:
        return prediction == reference
    return abs(number - right) / abs(right) <= _TOLERANCE


def relaxed_accuracy_measures(
    predictions: Sequence[str], references: Sequence[str], groups: Sequence[str] | None = None
) -> list[Measure]:
    """Compute relaxed accuracy of ChartQA.

    Args:
        groups: "human" or "augmented" for each question.

    Returns:
        "relaxed_accuracy", the unweighted mean over groups; "exact_accuracy", lower-cased equality
        over all questions; then "relaxed_accuracy/GROUP".
    """
    require_same_length("relaxed accuracy", predictions=predictions, references=references)
    is_right = np.array(list(map(is_relaxed_match, predictions, references)))
    is_same = np.array(
        [a.lower() == b.lower() for a, b in zip(predictions, references, strict=True)]
    )
    exact = mean_measure("exact_accuracy", is_same)
    if groups is None:
        return [mean_measure("relaxed_accuracy", is_right), exact]
    require_same_length("relaxed accuracy", predictions=predictions, groups=groups)
    each = by_group("relaxed_accuracy", is_right, groups)
    return [average_of("relaxed_accuracy", each), exact, *each]


def _big_vision(prediction: str, reference: str) -> float:
    if not reference:
        return float(not prediction)
    distance = levenshtein(reference, prediction) / max(len(reference), len(prediction))
    return 1 - distance if distance < _THRESHOLD else 0.0


def _server_like(prediction: str, reference: str) -> float:
    # The lengths are of the texts as they are written.
    length = _length(prediction, reference)
    distance = levenshtein(_collapsed(reference), _collapsed(prediction))
    similarity = 1 - (distance / length if length else 0.0)
    return similarity if similarity >= _THRESHOLD else 0.0


def _pypi(prediction: str, reference: str) -> float:
    prediction, reference = _collapsed(prediction), _collapsed(reference)
    length = _length(prediction, reference)
    distance = levenshtein(reference, prediction) / length if length else 0.0
    return 1 - distance if distance < _THRESHOLD else 0.0


def _collapsed(text: str) -> str:
    return " ".join(text.lower().split())


def _length(a: str, b: str) -> int:
    # Both scripts count in upper case, where "ß" is two letters.
    return max(len(a.upper()), len(b.upper()))


_VARIANTS: dict[str, Callable[[str, str], float]] = {
    "big_vision": _big_vision,
    "server_like": _server_like,
    "pypi": _pypi,
}
