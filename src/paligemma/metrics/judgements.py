"""NES: the share of sentences that people judge as not entailed by the picture.

Source: PaliGemma 2 report, section on long captions, which gives the protocol but neither the rule
for ties nor that for sentences without anything to assess; callers name both.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, mean_measure, ratio_measure
from paligemma.metrics.pairs import require_choice, require_same_length

ENTAILMENT, NEUTRAL, CONTRADICTION = "Entailment", "Neutral", "Contradiction"
NOTHING = "Nothing to assess"
RATER_LABELS = (ENTAILMENT, NEUTRAL, CONTRADICTION, NOTHING)

# A sentence on which equally many raters chose entailment and another verdict.
VerdictTieRule = Literal["non_entailed", "entailed", "left_out"]
# Sentences whose majority found nothing to assess: not in the denominator, or in it as entailed.
NothingRule = Literal["left_out", "counted"]

# For each image, for each sentence, the labels of the raters.
Judgements = Sequence[Sequence[Sequence[str]]]


def sentence_verdict(labels: Sequence[str], *, ties: VerdictTieRule = "non_entailed") -> str | None:
    """Find the verdict of the majority of raters on a sentence.

    A verdict tied with "nothing to assess" wins, and neutral tied with contradiction is no tie.

    Returns:
        "entailed", "non_entailed", "nothing", or None where a tie is left out.

    Raises:
        DataError: no label, or an unknown one.
    """
    require_choice("the rule for ties", ties, VerdictTieRule)
    if unknown := [label for label in labels if label not in RATER_LABELS]:
        raise DataError(f"a judgement must be one of {', '.join(RATER_LABELS)}, got {unknown[0]!r}")
    if not labels:
        raise DataError("a sentence needs judgements, got none; leave it out")
    votes = Counter(labels)
    most = max(votes.values())
    leading = {label for label, num in votes.items() if num == most}
    if leading == {NOTHING}:
        return "nothing"
    leading -= {NOTHING}
    if leading == {ENTAILMENT}:
        return "entailed"
    if ENTAILMENT not in leading:
        return "non_entailed"
    return None if ties == "left_out" else ties


def nes_measures(
    judgements: Judgements,
    captions: Sequence[str] | None = None,
    *,
    ties: VerdictTieRule = "non_entailed",
    nothing: NothingRule = "left_out",
) -> list[Measure]:
    """Compute the share of assessed sentences that are not entailed; low is good.

    The share is pooled over all images. Lengths come with it, because short captions err less.

    Args:
        captions: the caption of each image, for the mean number of characters.

    Returns:
        "nes", "sentences" a caption, and "characters" where captions are given.

    Raises:
        DataError: lengths differ, no sentence was assessed, or a label is unknown.
    """
    require_choice("the rule for nothing to assess", nothing, NothingRule)
    require_same_length("NES", judgements=judgements)
    verdicts = [[sentence_verdict(labels, ties=ties) for labels in image] for image in judgements]
    wrong = np.array([image.count("non_entailed") for image in verdicts])
    assessed = wrong + [image.count("entailed") for image in verdicts]
    if nothing == "counted":
        assessed = assessed + [image.count("nothing") for image in verdicts]
    lengths = [float(len(image)) for image in judgements]
    measures = [
        ratio_measure("nes", wrong, assessed, is_error=True),
        mean_measure("sentences", lengths, scale=1.0),
    ]
    if captions is not None:
        require_same_length("NES", judgements=judgements, captions=captions)
        measures.append(mean_measure("characters", [len(one) for one in captions], scale=1.0))
    return measures
