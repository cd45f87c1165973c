"""Scorers of short answers, and the files that their test servers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.answers import exact_match_measures
from paligemma.metrics.measure import Measure
from paligemma.metrics.vqa import direct_answer_measures, soft_accuracy_measures, vqa_measures
from paligemma.tasks.reading.languages import ENGLISH, XGQA_LANGUAGES, score_by_language


def score_vqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """VQA accuracy, and by answer type."""
    references = [one.references for one in examples]
    answers = [one["answers"] for one in references]
    _require_answers(answers)
    types = [one["answer_type"] for one in references]
    return vqa_measures(_texts(predictions), answers, types)


def score_textvqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """VQA accuracy."""
    answers = [one.references["answers"] for one in examples]
    _require_answers(answers)
    return vqa_measures(_texts(predictions), answers)


def score_okvqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Soft accuracy over ten answers."""
    return soft_accuracy_measures(_texts(predictions), [one.references for one in examples])


def score_vizwiz(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Soft accuracy, as reported on val; the server cleans answers up as for VQAv2."""
    answers = [one.references for one in examples]
    _require_answers(answers)
    return soft_accuracy_measures(_texts(predictions), answers)


def score_aokvqa_direct(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Soft accuracy of all questions; "accuracy_official" leaves out those flagged difficult."""
    answers = [one.references["answers"] for one in examples]
    _require_answers(answers)
    difficult = [one.references["is_difficult"] for one in examples]
    said = _texts(predictions)
    measures = direct_answer_measures(said, answers, difficult)
    if not all(difficult):
        official = direct_answer_measures(said, answers, difficult, variant="official")
        measures += [replace(one, name=f"{one.name}_official") for one in official[:1]]
    return measures


def score_aokvqa_choices(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Share of answers that are the text of the right option."""
    right = [one.references["answer"] for one in examples]
    _require_answers(right)
    return exact_match_measures(_texts(predictions), right)


def score_exact(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Share of answers equal to the reference, case and all."""
    return exact_match_measures(_texts(predictions), [one.references for one in examples])


def score_xgqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Exact match of every language by itself; "avg7" leaves English out, "avg8" has all."""
    others = tuple(one for one in XGQA_LANGUAGES if one != ENGLISH)
    return score_by_language(
        [one.slices["language"] for one in examples],
        lambda rows: score_exact([examples[k] for k in rows], [predictions[k] for k in rows]),
        expected=XGQA_LANGUAGES,
        averages={"avg7": others, "avg8": XGQA_LANGUAGES},
    )


def question_submission(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """`question_id` and `answer`, as the servers of VQAv2 and TextVQA take them.

    VQAv2's wants test and test-dev in one file.
    """
    return [
        {"question_id": int(one.id), "answer": answer.text}
        for one, answer in zip(examples, predictions, strict=True)
    ]


def vizwiz_submission(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """`image` and `answer`."""
    return [
        {"image": one.id, "answer": answer.text}
        for one, answer in zip(examples, predictions, strict=True)
    ]


def aokvqa_direct_submission(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Question -> direct answer; the server takes it with the options of the other task."""
    return {
        one.id: {"direct_answer": answer.text}
        for one, answer in zip(examples, predictions, strict=True)
    }


def aokvqa_choices_submission(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Question -> option; the server takes it with the direct answers of the other task."""
    return {
        one.id: {"multiple_choice": answer.text}
        for one, answer in zip(examples, predictions, strict=True)
    }


def joined_aokvqa_submission(
    direct: Mapping[str, Mapping[str, str]], choices: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Both kinds of answers of every question, as the server takes them in one file.

    Raises:
        DataError: the two do not answer the same questions.
    """
    if direct.keys() != choices.keys():
        raise DataError(
            f"both files must answer the same questions, {len(direct.keys() ^ choices.keys())} "
            "stand in one alone"
        )
    return {question: {**choices[question], **direct[question]} for question in direct}


def _texts(predictions: Sequence[Prediction]) -> list[str]:
    return [one.text for one in predictions]


def _require_answers(answers: Sequence[Any]) -> None:
    if answers and not any(answers):
        raise DataError(
            "a test split has no answers and cannot be scored here; write a submission and send "
            "it to the server"
        )
