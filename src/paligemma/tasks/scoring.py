"""Scorers and submissions that several families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.answers import exact_match_measures
from paligemma.metrics.measure import Measure
from paligemma.metrics.subsets import score_by_language
from paligemma.tasks.reading.file_rows import whole_number
from paligemma.tasks.reading.languages import ENGLISH
from paligemma.tasks.task import Scorer


def texts_of(predictions: Sequence[Prediction]) -> list[str]:
    """Return the whole text of each answer."""
    return [one.text for one in predictions]


def require_references(references: Sequence[Any], what: str = "answers") -> None:
    """Refuse a split without references, such as that of a test server, by a DataError."""
    if references and not any(references):
        raise DataError(
            f"a test split has no {what} and cannot be scored here; write a submission and send it "
            "to the server"
        )


def score_exact(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, lower: bool = False
) -> list[Measure]:
    """Compute the share of answers equal to the reference; `lower` ignores case."""
    references = [one.references for one in examples]
    return exact_match_measures(texts_of(predictions), references, lower=lower)


def score_captions(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, bleu: bool = False
) -> list[Measure]:
    """Compute CIDEr of the whole split, and BLEU-4 with `bleu`.

    Raises:
        DataError: a split without captions.
    """
    from paligemma.metrics.caption import caption_measures

    references = [one.references for one in examples]
    require_references(references, "captions")
    return caption_measures(texts_of(predictions), references, bleu=bleu)


def score_languages(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    score: Scorer,
    languages: Sequence[str],
) -> list[Measure]:
    """Compute the figures of every language by itself, and their unweighted means.

    Args:
        examples: examples whose slice "language" names the language.
        languages: languages of the benchmark. "avgN" averages all N of them; where English is
            one of them, the average over the others comes first.
    """
    others = tuple(one for one in languages if one != ENGLISH)
    return score_by_language(
        [str(one.slices["language"]) for one in examples],
        lambda rows: score([examples[k] for k in rows], [predictions[k] for k in rows]),
        expected=languages,
        averages={f"avg{len(some)}": some for some in (others, languages)},
    )


def coco_bbox(box_yxyx: Sequence[float], size_hw: Sequence[float] = (1, 1)) -> list[float]:
    """Turn a normalised box into COCO's [x, y, width, height], in pixels with the size of these."""
    (y0, x0, y1, x1), (height, width) = box_yxyx, size_hw
    return [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]


def coco_results(prediction: Prediction, size_hw: Sequence[float] = (1, 1)) -> list[dict[str, Any]]:
    """Write the boxes of an answer as COCO's results; a box without confidence is certain."""
    return [
        {
            "label": one.label,
            "bbox": coco_bbox(one.box_yxyx, size_hw),
            "score": 1.0 if one.score is None else one.score,
        }
        for one in prediction.objects
    ]


def submit_rows(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    key: str,
    answer: str = "answer",
) -> list[dict[str, Any]]:
    """Write one row an example, as most test servers take them.

    Args:
        key: name of the field with the example's id, a whole number where it has digits alone.
    """
    return [
        {key: one.id if (number := whole_number(one.id)) is None else number, answer: said.text}
        for one, said in zip(examples, predictions, strict=True)
    ]
