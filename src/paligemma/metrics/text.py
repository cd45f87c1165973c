"""Scores of texts: edit distance, character error rate, exact match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paligemma.errors import DataError


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Fewest insertions, deletions and replacements that turn a into b (Levenshtein).

    Args:
        a: a string, or any sequence of units that compare.
        b: another.
    """
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if not a or not b:
        return len(a) + len(b)
    above = list(range(len(b) + 1))
    for row, unit in enumerate(a, start=1):
        left, diagonal = row, above[0]
        above[0] = row
        for column, other in enumerate(b, start=1):
            up = above[column]
            left = min(left + 1, up + 1, diagonal + (unit != other))
            above[column], diagonal = left, up
    return above[-1]


def edit_counts(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Edit distance and number of reference characters of each pair: int64[N, 2].

    Raises:
        DataError: the lengths differ.
    """
    if len(predictions) != len(references):
        raise DataError(
            f"every prediction needs one reference, got {len(predictions)} and {len(references)}; "
            "pass lists of one length"
        )
    pairs = zip(predictions, references, strict=True)
    counts = [
        (edit_distance(prediction, reference), len(reference)) for prediction, reference in pairs
    ]
    return np.array(counts, np.int64).reshape(-1, 2)


def character_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Edits of the whole corpus over its reference characters; 0 is perfect, and 1 can be exceeded.

    Raises:
        DataError: the lengths differ, or there are no reference characters.
    """
    distance, length = edit_counts(predictions, references).sum(axis=0)
    if not length:
        raise DataError(
            "a character error rate needs reference characters, got none; "
            "leave out pictures without text"
        )
    return float(distance / length)


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions equal to their reference, case and punctuation included.

    Raises:
        DataError: the lengths differ, or there are no pairs.
    """
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"accuracy needs one reference a prediction and at least one pair, got "
            f"{len(predictions)} and {len(references)}"
        )
    return sum(map(str.__eq__, predictions, references)) / len(references)
