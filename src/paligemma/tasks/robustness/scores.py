"""Scorers of POPE and MMVP; those of Objaverse stand in `objaverse`."""

import logging
from collections import Counter
from collections.abc import Sequence

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.metrics.subsets import over_rows
from paligemma.metrics.yes_no import OptionRule, mmvp_is_right, mmvp_measures, pope_measures
from paligemma.tasks.scoring import texts_of

logger = logging.getLogger(__name__)


def score_pope(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute the mean of the three accuracies, then the other figures of `pope_measures`."""
    return pope_measures(
        texts_of(predictions),
        [one.references for one in examples],
        [str(one.slices["file"]) for one in examples],
    )


def score_mmvp(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, options: OptionRule = "text"
) -> list[Measure]:
    """Compute paired accuracy; an answer is right that names the right option by the rule.

    A pair is left out where the sample holds only one of its questions.
    """
    pairs = [one.unit or one.id for one in examples]
    num = Counter(pairs)
    whole = [index for index, pair in enumerate(pairs) if num[pair] == 2]
    if not whole:
        raise DataError(
            f"MMVP is scored by pairs of questions, got {len(examples)} questions of as many "
            "pairs; answer more of them"
        )
    measures = mmvp_measures(
        [
            mmvp_is_right(
                predictions[index].text,
                examples[index].references["options"],
                examples[index].references["correct"],
                rule=options,
            )
            for index in whole
        ],
        [pairs[index] for index in whole],
    )
    if len(whole) == len(examples):
        return measures
    logger.warning("mmvp: %d questions lack their pair, left out", len(examples) - len(whole))
    return [over_rows(one, whole, len(examples), one.name) for one in measures]
