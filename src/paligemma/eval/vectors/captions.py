"""Vectors of captions, and of averages over languages."""

from typing import Any

from paligemma.eval.vectors import Check, Params, by_name, per_example
from paligemma.metrics.caption import caption_measures
from paligemma.metrics.measure import mean_measure
from paligemma.metrics.ptb import ptb_tokenize, ptb_tokenize_batch
from paligemma.metrics.subsets import score_by_language
from paligemma.tasks.reading.languages import ENGLISH


def _captioning(predictions: Any, references: Any, params: Params) -> dict[str, Any]:
    found = caption_measures(predictions, references, bleu=True, rouge=True)
    return by_name(found) | {"cider_per_image": per_example(found[0])}


def _languages(predictions: Any, references: Any, params: Params) -> dict[str, float]:
    names = list(predictions)
    others = [name for name in names if name != ENGLISH]
    found = score_by_language(
        names,
        lambda rows: [mean_measure("score", [predictions[names[row]] for row in rows])],
        expected=names,
        averages={"avg_without_en": others, "avg_all": names},
    )
    return {one.name.removeprefix("score/"): one.value for one in found}


CHECKS: dict[str, Check] = {
    "ptb_tokenize": lambda found, truth, params: ptb_tokenize(found),
    # The vectors show what Java makes of line breaks that are none to us.
    "ptb_tokenize_batch": lambda found, truth, params: ptb_tokenize_batch(
        found, java_line_breaks=True
    ),
    "captioning": _captioning,
    "multilingual_average": _languages,
}
