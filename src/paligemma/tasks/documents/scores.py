"""Scorers of questions about documents, charts and counts."""

from collections.abc import Sequence
from dataclasses import replace

from paligemma.example import Example, Prediction
from paligemma.metrics.answers import tallyqa_measures
from paligemma.metrics.documents import anls_measures, relaxed_accuracy_measures
from paligemma.metrics.measure import Measure
from paligemma.tasks.scoring import require_references, texts_of

TALLYQA_KINDS = ("simple", "complex")


def score_anls(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute ANLS as the evaluator of PaliGemma does, and as the test server is said to.

    Raises:
        DataError: a split without answers.
    """
    answers = [one.references["answers"] for one in examples]
    require_references(answers)
    texts = texts_of(predictions)
    any_order = any(one.references.get("any_order") for one in examples)
    server = anls_measures(texts, answers, variant="server_like", any_order=any_order)
    return [
        *anls_measures(texts, answers, any_order=any_order),
        *(replace(one, name=f"{one.name}_server_like") for one in server),
    ]


def score_chartqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute relaxed accuracy: the mean of the two kinds of questions first, then each kind."""
    references = [one.references for one in examples]
    kinds = [str(one.slices["kind"]) for one in examples]
    return relaxed_accuracy_measures(texts_of(predictions), references, groups=kinds)


def score_counts(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute accuracy with number words as digits, that of simple and complex questions first."""
    kinds = [one.slices.get("complexity") for one in examples]
    measures = tallyqa_measures(
        texts_of(predictions),
        [one.references for one in examples],
        None if None in kinds else [kind == "simple" for kind in kinds],
    )
    first = [f"accuracy/{kind}" for kind in TALLYQA_KINDS]
    return sorted(measures, key=lambda one: one.name not in first)
