"""Vectors of captions, and of averages over languages."""

from __future__ import annotations

from paligemma.eval.vectors import Check, Vector
from paligemma.metrics.measure import mean_measure
from paligemma.tasks.multilingual import ENGLISH, score_by_language


def _languages(vector: Vector) -> dict[str, float]:
    scores = vector["predictions"]
    names = list(scores)
    others = [name for name in names if name != ENGLISH]
    found = score_by_language(
        names,
        lambda rows: [mean_measure("score", [scores[names[row]] for row in rows])],
        expected=names,
        averages={"avg_without_en": others, "avg_all": names},
    )
    return {one.name.removeprefix("score/"): one.value for one in found}


CHECKS: dict[str, Check] = {"multilingual_average": _languages}
