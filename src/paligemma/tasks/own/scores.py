"""Scores a user's own rows by what their prompts ask, or words by a metric of choice."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.answers import count_digits
from paligemma.metrics.documents import anls_measures, is_relaxed_match
from paligemma.metrics.measure import Measure, mean_measure, ratio_measure
from paligemma.metrics.pairs import edit_distance
from paligemma.metrics.subsets import over_rows
from paligemma.metrics.vqa import soft_accuracy_measures, vqa_measures
from paligemma.outputs.rle import decode_rle
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
        return _by_prompt(examples, predictions)
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
        found = _by_prompt([examples[k] for k in rest], [predictions[k] for k in rest])
        figures += [(rest, one) for one in found]
    return [over_rows(one, rows, len(examples), one.name) for rows, one in figures]


def _by_prompt(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    first, *others = score_scenes(examples, predictions)  # with masks, average precision
    masks = _mask_measures(examples, predictions)
    return [first, *masks[:1], *others, *masks[1:]]


def _mask_measures(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Overlap of masks where all true ones are known: of each label of a picture that is there or
    was found, all masks together, averaged over these ("segment_miou"), or all intersections by
    all unions ("segment_ciou")."""
    # Overlap, pairs of picture and label, intersection, union: of each example, and by label.
    sums = np.zeros((len(examples), 4))
    by_label: dict[str, np.ndarray] = {}
    for k, (example, answer) in enumerate(zip(examples, predictions, strict=True)):
        truth = example.references.get("objects", [])
        if example.references["slice"] != "segment" or not all("mask" in one for one in truth):
            continue
        found = [(one.label, one.mask) for one in answer.objects]
        there = [(one["label"], one["mask"]) for one in truth]
        for label in {name for name, _ in (*found, *there)}:
            overlap, union = _overlap(
                [mask for name, mask in found if name == label and mask is not None],
                [mask for name, mask in there if name == label],
            )
            counted = np.array([overlap / union if union else 0.0, 1.0, overlap, union])
            sums[k] += counted
            by_label.setdefault(label, np.zeros_like(sums))[k] += counted
    if not any(
        "mask" in one for example in examples for one in example.references.get("objects", [])
    ):
        return []
    measures = [ratio_measure("segment_miou", sums[:, 0], sums[:, 1])]
    if sums[:, 3].any():
        measures.append(ratio_measure("segment_ciou", sums[:, 2], sums[:, 3]))
    if len(by_label) > 1:
        measures += [
            ratio_measure(f"segment_miou/{label}", counted[:, 0], counted[:, 1])
            for label, counted in sorted(by_label.items())
        ]
    return measures


def _overlap(
    found: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]
) -> tuple[int, int]:
    """Pixels of intersection and union of some masks with others, as run lengths."""
    masks = [[decode_rle(one) for one in some] for some in (found, there)]
    shapes = {one.shape for some in masks for one in some}
    if len(shapes) > 1:  # of another program, for another size of the picture
        return 0, sum(int(np.any(some, axis=0).sum()) for some in masks if some)
    if not shapes:
        return 0, 0
    (shape,) = shapes
    a, b = (np.any(some, axis=0) if some else np.zeros(shape, bool) for some in masks)
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b))


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
