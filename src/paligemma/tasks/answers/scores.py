"""Scorers of short answers, and the files that their test servers take."""

from collections.abc import Sequence
from dataclasses import replace

from paligemma.example import Example, Prediction
from paligemma.metrics.answers import exact_match_measures
from paligemma.metrics.measure import Measure
from paligemma.metrics.vqa import soft_accuracy_measures, vqa_measures
from paligemma.tasks.scoring import require_references, texts_of


def score_vqa(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, by_type: bool = True
) -> list[Measure]:
    """Compute VQA accuracy, and that of each answer type with `by_type`."""
    answers = [one.references["answers"] for one in examples]
    require_references(answers)
    types = [one.references["answer_type"] for one in examples] if by_type else None
    return vqa_measures(texts_of(predictions), answers, types)


def score_soft(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute soft accuracy over all annotators, without clean-up."""
    answers = [one.references for one in examples]
    require_references(answers)
    return soft_accuracy_measures(texts_of(predictions), answers)


def score_aokvqa_direct(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Compute soft accuracy; "accuracy_official" leaves out questions flagged difficult."""
    answers = [one.references["answers"] for one in examples]
    require_references(answers)
    difficult = [one.references["is_difficult"] for one in examples]
    texts = texts_of(predictions)
    measures = soft_accuracy_measures(texts, answers)
    if not all(difficult):
        official = soft_accuracy_measures(texts, answers, drop=difficult)
        measures.append(replace(official[0], name=f"{official[0].name}_official"))
    return measures


def score_aokvqa_choices(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Compute the share of answers that are the text of the right option."""
    right = [one.references["answer"] for one in examples]
    require_references(right)
    return exact_match_measures(texts_of(predictions), right)


def submit_aokvqa(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, kind: str
) -> dict[str, dict[str, str]]:
    """Map questions to answers of one kind; the server takes both kinds together in one file.

    Args:
        kind: "direct_answer" or "multiple_choice".
    """
    return {one.id: {kind: said.text} for one, said in zip(examples, predictions, strict=True)}
