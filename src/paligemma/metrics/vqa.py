"""VQA accuracy of VQAv2 and TextVQA with its text clean-up, and the soft accuracy without it.

Source: GT-Vision-Lab/VQA PythonEvaluationTools/vqaEvaluation/vqaEval.py, and big_vision
`evaluators/proj/paligemma/transfers/vqav2.py` and `vqa.py`.
"""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.pairs import require_answers, require_same_length
from paligemma.metrics.vqa_words import ARTICLES, REPLACEMENTS

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
_ANY_MARK = re.compile("[" + re.escape(_MARKS) + "]")
_FULL_CREDIT = 3


def strip_spaces(text: str) -> str:
    """Turn newlines and tabs into spaces, then strip both ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(text: str) -> str:
    """Clean an answer up: marks, full stops, case, number words, articles, contractions.

    A mark is deleted where it touches a space anywhere in the answer, or where the answer holds
    digit-comma-digit; elsewhere it becomes a space. Colon, dollar, percent and apostrophe stay.
    All full stops but those before a digit go, as in big_vision; the published script stops at 32.
    """
    cleaned = strip_spaces(text)
    marks = set(_ANY_MARK.findall(cleaned))
    if marks:
        original, deletes_all = cleaned, _DIGIT_COMMA.search(cleaned) is not None
        for mark in marks:
            is_loose = f"{mark} " in original or f" {mark}" in original
            cleaned = cleaned.replace(mark, "" if deletes_all or is_loose else " ")
    words = (word for word in _STOP.sub("", cleaned).lower().split() if word not in ARTICLES)
    return " ".join(REPLACEMENTS.get(word, word) for word in words)


def leave_one_out_accuracy(num_matches: int, num_answers: int = 10) -> float:
    """Compute the mean over annotators of min(1, matches among the others / 3).

    Args:
        num_answers: number of annotators, at least 2.

    Returns:
        In [0, 1]; of ten annotators 0, 0.3, 0.6, 0.9 and 1 for 0, 1, 2, 3 and 4 matches.
    """
    with_it = num_matches * min(1.0, (num_matches - 1) / _FULL_CREDIT)
    without_it = (num_answers - num_matches) * min(1.0, num_matches / _FULL_CREDIT)
    return (with_it + without_it) / num_answers


def vqa_accuracies(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Compute the accuracy of each question: float64[N] in [0, 1].

    Where the annotators of a question all agree nothing is normalised, so that "Yes" scores 0
    against ten "yes".

    Args:
        answers: answers of the annotators of each question, ten as a rule, repeats kept.

    Raises:
        DataError: lengths differ, nothing to score, or a question with fewer than two answers.
    """
    require_same_length("VQA accuracy", predictions=predictions, answers=answers)
    require_answers("VQA accuracy", answers, at_least=2)
    normalized = cache(normalize_answer)
    scores = np.empty(len(predictions))
    for index, (prediction, given) in enumerate(zip(predictions, answers, strict=True)):
        prediction = strip_spaces(prediction)
        given = [strip_spaces(answer) for answer in given]
        if any(answer != given[0] for answer in given):
            prediction, given = normalized(prediction), list(map(normalized, given))
        scores[index] = leave_one_out_accuracy(given.count(prediction), len(given))
    return scores


def vqa_measures(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    answer_types: Sequence[str] | None = None,
) -> list[Measure]:
    """Compute VQA accuracy, and the same for each answer type that occurs.

    Args:
        answer_types: "yes/no", "number" or "other" for each question.

    Returns:
        "accuracy", then "accuracy/yesno", "accuracy/number", "accuracy/other".
    """
    scores = vqa_accuracies(predictions, answers)
    measures = [mean_measure("accuracy", scores)]
    if answer_types is not None:
        require_same_length("VQA accuracy", predictions=predictions, answer_types=answer_types)
        types = np.array(list(answer_types), dtype=object)
        known = ("yes/no", "number", "other")
        names = [name for name in known if name in answer_types]
        measures += [
            mean_measure(f"accuracy/{name.replace('/', '')}", scores, types == name)
            for name in (*names, *sorted(set(answer_types) - set(known)))
        ]
    return measures


def soft_accuracy(prediction: str | None, answers: Sequence[str]) -> float:
    """Compute min(1, exact matches / 3) without clean-up; None never matches."""
    return min(1.0, sum(prediction == answer for answer in answers) / _FULL_CREDIT)


def soft_accuracy_measures(
    predictions: Sequence[str | None],
    answers: Sequence[Sequence[str]],
    *,
    drop: Sequence[bool] | None = None,
    lower: bool = False,
) -> list[Measure]:
    """Compute soft accuracy, by which OKVQA, A-OKVQA and VizWiz are scored on local splits.

    Args:
        answers: answers of the annotators of each question, repeats kept.

    Returns:
        "accuracy", and "accuracy_any", the share of questions with any match.

    Raises:
        DataError: lengths differ, a question without answers, or none left to score.
    """
    require_same_length("soft accuracy", predictions=predictions, answers=answers)
    require_answers("soft accuracy", answers)
    if lower:
        predictions = [None if one is None else one.lower() for one in predictions]
        answers = [[answer.lower() for answer in one] for one in answers]
    scores = np.array(list(map(soft_accuracy, predictions, answers)))
    kept = np.ones(len(scores), bool)
    if drop is not None:
        require_same_length("soft accuracy", predictions=predictions, drop=drop)
        kept = ~np.asarray(drop, bool)
    if not kept.any():
        raise DataError("soft accuracy is undefined where every question is dropped; keep some")
    return [
        mean_measure("accuracy", scores, kept),
        mean_measure("accuracy_any", scores > 0, kept),
    ]
