"""What was taken for what: labels of objects matched by their boxes, or short answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from paligemma.eval.outcomes import MIN_IOU, has_objects, true_objects
from paligemma.eval.scored import Scored, reference_words
from paligemma.example import FoundObject
from paligemma.outputs.boxes import box_iou
from paligemma.processing.prompts import object_prompt

# A table with more rows is no help.
MAX_NAMES = 12
OTHER, NOTHING = "(other)", "(nothing)"
_MAX_CHARS = 40


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often what is there was answered with what.

    Attributes:
        what: "objects" or "answers".
        names: those that occur most, with `OTHER` and `NOTHING` where they are needed.
        counts: (what is there, what was said) -> number.
    """

    what: str
    names: tuple[str, ...]
    counts: dict[tuple[str, str], int]


def confusion(scored: Scored) -> Confusion | None:
    """Of objects where there are any, else of answers; None where no name occurs twice."""
    if has_objects(scored):
        what, pairs = "objects", _object_pairs(scored)
    else:
        what = "answers"
        pairs = Counter(
            (reference_words(example.references)[:_MAX_CHARS], answer.text.strip()[:_MAX_CHARS])
            for example, answer in zip(scored.examples, scored.predictions, strict=True)
        )
    times: Counter[str] = Counter()
    for (there, _), number in pairs.items():
        times[there] += number
    times.pop(NOTHING, None)
    if what == "answers" and max(times.values(), default=0) < 2:
        return None
    named = [name for name, _ in times.most_common(MAX_NAMES)]
    counts: Counter[tuple[str, str]] = Counter()
    for (there, said), number in pairs.items():
        row, column = (one if one in (*named, NOTHING) else OTHER for one in (there, said))
        counts[row, column] += number
    used = {name for pair in counts for name in pair}
    names = (*named, *(name for name in (OTHER, NOTHING) if name in used))
    return Confusion(what=what, names=names, counts=dict(counts))


def outside_labels(scored: Scored) -> list[tuple[str, int]]:
    """Labels of answers that their prompt did not ask for, the most frequent first."""
    times: Counter[str] = Counter()
    for example, answer in zip(scored.examples, scored.predictions, strict=True):
        asked = object_prompt(example.prefix)
        if asked is not None:
            outside = (one.label for one in answer.objects if one.label not in asked.labels)
            times.update(label[:_MAX_CHARS] for label in outside)
    return times.most_common(MAX_NAMES)


def _object_pairs(scored: Scored) -> Counter[tuple[str, str]]:
    """Each true object with the label of the box that covers it best, whatever that says."""
    pairs: Counter[tuple[str, str]] = Counter()
    for example, answer in zip(scored.examples, scored.predictions, strict=True):
        truth = [one for one in true_objects(example.references) or [] if not one.is_ignored]
        free = list(truth)
        for one in sorted(answer.objects, key=lambda found: -(found.score or 0.0)):
            best = _best(one, [true.box_yxyx for true in free])
            if best is None:
                pairs[NOTHING, one.label] += 1
            else:
                pairs[free.pop(best).label, one.label] += 1
        for true in free:
            pairs[true.label, NOTHING] += 1
    return pairs


def _best(one: FoundObject, boxes: list[tuple[float, float, float, float]]) -> int | None:
    if not boxes:
        return None
    iou = box_iou(np.array([one.box_yxyx], np.float64), np.array(boxes, np.float64))
    best = int(np.argmax(iou))
    return best if iou[best] >= MIN_IOU else None
