"""Figures over some of the examples as figures over all, and figures by language."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from paligemma.metrics.measure import Measure, average_of

# Computes the figures of some rows from their numbers.
ByRows = Callable[[list[int]], Sequence[Measure]]


def score_by_language(
    languages: Sequence[str],
    score: ByRows,
    *,
    expected: Sequence[str],
    averages: Mapping[str, Sequence[str]],
) -> list[Measure]:
    """Score every language by itself, then average without weights.

    Args:
        averages: languages of each average by its name; an average is left out where one of its
            languages has no examples.

    Returns:
        For every NAME that `score` gives, "NAME/AVERAGE" in the order of `averages`, or "NAME", the
        mean over the languages that occur, where no average can be given; then "NAME/LANGUAGE".
        All over the whole list of examples.
    """
    places: dict[str, list[int]] = {one: [] for one in expected}
    for row, language in enumerate(languages):
        places.setdefault(language, []).append(row)
    by_name: dict[str, dict[str, Measure]] = {}
    for language, rows in places.items():
        for one in score(rows) if rows else ():
            of_language = over_rows(one, rows, len(languages), f"{one.name}/{language}")
            by_name.setdefault(one.name, {})[language] = of_language
    measures = []
    for name, each in by_name.items():
        complete = {
            f"{name}/{average}": [each[language] for language in wanted]
            for average, wanted in averages.items()
            if all(language in each for language in wanted)
        }
        for average, parts in (complete or {name: list(each.values())}).items():
            measures.append(replace(average_of(average, parts), per_example=_joined(parts)))
        measures += each.values()
    return measures


def _joined(parts: Sequence[Measure]) -> np.ndarray | None:
    """Join the contributions of examples to the figures of their languages."""
    known = [one.per_example for one in parts if one.per_example is not None]
    if len(known) != len(parts):
        return None
    joined = np.full(parts[0].num, np.nan)
    for values in known:
        joined = np.where(np.isnan(values), joined, values)
    return joined


def over_rows(measure: Measure, rows: Sequence[int], num: int, name: str) -> Measure:
    """Turn a figure over some rows into one over all `num` examples, for joint resampling."""
    place = np.asarray(rows, np.intp)
    per_example = None
    if measure.per_example is not None and len(measure.per_example) == len(place):
        per_example = np.full(num, np.nan)
        per_example[place] = measure.per_example

    def statistic(weights: np.ndarray) -> float:
        return measure.statistic(weights[place])

    return Measure(
        name=name,
        statistic=statistic,
        num=num,
        num_used=len(place),
        per_example=per_example,
        is_error=measure.is_error,
        scale=measure.scale,
    )
