"""Scores a user's own rows by what their prompts ask, or words by a metric of choice."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.answers import count_digits
from paligemma.metrics.documents import anls_measures, is_relaxed_match
from paligemma.metrics.measure import Measure, mean_measure, ratio_measure
from paligemma.metrics.pairs import edit_distance
from paligemma.metrics.subsets import over_rows
from paligemma.metrics.vqa import soft_accuracy_measures, vqa_measures
from paligemma.tasks.scenes.scores import score_scenes

BY_PROMPT = "by_prompt"
# (answers of the model, right answers of each) -> figures.
_Figures = Callable[[Sequence[str], Sequence[Sequence[str]]], list[Measure]]


def score_own(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, metric: str = BY_PROMPT
) -> list[Measure]:
    """Compute the figures of the prompts, or of a metric, whose figure comes first.

    Rows that ask for objects keep their figures beside a metric of words.

    Args:
        metric: one of `METRICS`, or `BY_PROMPT`.

    Raises:
        DataError: a metric of words where every row asks for objects.
    """
    if metric == BY_PROMPT:
        return score_scenes(examples, predictions)
    words = [k for k, one in enumerate(examples) if "text" in one.references]
    if not words:
        raise DataError(
            f"{metric} compares answers in words, but every row asks for objects; leave the metric "
            "out"
        )
    texts = [predictions[k].text.strip() for k in words]
    right = [[truth["text"], *truth.get("others", ())] for truth in _references(examples, words)]
    figures = [(words, one) for one in METRICS[metric](texts, right)]
    if rest := sorted(set(range(len(examples))) - set(words)):
        found = score_scenes([examples[k] for k in rest], [predictions[k] for k in rest])
        figures += [(rest, one) for one in found]
    return [over_rows(one, rows, len(examples), one.name) for rows, one in figures]


def _references(examples: Sequence[Example], rows: Sequence[int]) -> list[dict[str, str]]:
    return [examples[k].references for k in rows]


def _share(
    name: str,
    is_right: Callable[[str, str], bool],
    texts: Sequence[str],
    right: Sequence[Sequence[str]],
) -> list[Measure]:
    """The share of answers that agree with any of theirs."""
    pairs = zip(texts, right, strict=True)
    return [
        mean_measure(name, [any(is_right(text, one) for one in given) for text, given in pairs])
    ]


def _captions(name: str, texts: Sequence[str], right: Sequence[Sequence[str]]) -> list[Measure]:
    from paligemma.metrics.caption import caption_measures

    found = caption_measures(texts, right, bleu=True, rouge=True)
    return sorted(found, key=lambda one: one.name != name)


def _character_errors(texts: Sequence[str], right: Sequence[Sequence[str]]) -> list[Measure]:
    nearest = [
        min(((edit_distance(text, one), len(one)) for one in given), key=lambda pair: pair[0])
        for text, given in zip(texts, right, strict=True)
    ]
    edits, lengths = np.array(nearest, np.float64).T
    return [ratio_measure("cer", edits, lengths, is_error=True)]


def _tables(texts: Sequence[str], right: Sequence[Sequence[str]]) -> list[Measure]:
    from paligemma.metrics.teds import teds_measures, wrap_table

    return teds_measures(
        [wrap_table(text) for text in texts], [wrap_table(given[0]) for given in right]
    )


def _molecules(texts: Sequence[str], right: Sequence[Sequence[str]]) -> list[Measure]:
    from paligemma.metrics.molecules import molecule_measures

    return molecule_measures(texts, [given[0] for given in right])


# By the name of the figure that benchmarks report.
METRICS: dict[str, _Figures] = {
    "accuracy": partial(_share, "accuracy", operator.eq),
    "accuracy_lower": partial(_share, "accuracy_lower", lambda a, b: a.lower() == b.lower()),
    "count_accuracy": partial(
        _share, "count_accuracy", lambda a, b: count_digits(a) == count_digits(b)
    ),
    "vqa_accuracy": vqa_measures,
    "soft_accuracy": soft_accuracy_measures,
    "anls": anls_measures,
    "relaxed_accuracy": partial(_share, "relaxed_accuracy", is_relaxed_match),
    "cer": _character_errors,
    **{name: partial(_captions, name) for name in ("cider", "bleu_4", "rouge_l")},
    "teds": _tables,
    "full_match": _molecules,
}
