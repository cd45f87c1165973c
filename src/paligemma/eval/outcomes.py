"""Which answers and boxes came true, each with the confidence it was given with."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paligemma.errors import DataError
from paligemma.eval.scored import Scored
from paligemma.example import FoundObject
from paligemma.outputs.boxes import Box, box_iou, box_xyxy_px_to_yxyx
from paligemma.processing.prompts import object_prompt

# An answer counts as right from this share of the full score on.
RIGHT = 0.5
MIN_IOU = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """Confidences and what came of them; D answers or boxes.

    Attributes:
        confidence: float64[D] in [0, 1].
        is_hit: bool[D].
        label: D labels; "" for answers in words.
        num_true: objects there are of each label, found or not; empty for answers in words.
        image: int64[D], position of the example each belongs to.

    Raises:
        DataError: a confidence outside [0, 1], or none at all.
    """

    confidence: np.ndarray
    is_hit: np.ndarray
    label: Sequence[str]
    num_true: Mapping[str, int]
    image: np.ndarray

    def __post_init__(self) -> None:
        p = self.confidence
        if not len(p):
            raise DataError(
                "confidences are compared with what came true, but no answer has one; use a run "
                "of this program, or predictions with `logprob` or `score`"
            )
        if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
            raise DataError(
                f"confidences must lie in [0, 1], got {float(p.min()):g} to {float(p.max()):g}; "
                "write probabilities"
            )


@dataclass(frozen=True, kw_only=True)
class TrueObject:
    """What is in a picture: a label with a normalised box; a region to be left alone if ignored.

    Attributes:
        mask: COCO's compressed run lengths of the whole picture, or None.
    """

    label: str
    box_yxyx: Box
    is_ignored: bool = False
    mask: Mapping[str, Any] | None = None


def has_objects(scored: Scored) -> bool:
    """Whether answers are boxes with known truth, rather than words; also where none was found."""
    known = [one for one in scored.examples if true_objects(one.references) is not None]
    return bool(known) and (
        any(one.objects for one in scored.predictions)
        or any(object_prompt(one.prefix) is not None for one in known)
    )


def text_outcomes(scored: Scored) -> Outcomes:
    """Answers in words: probability of the whole answer; right from half of the score on.

    Raises:
        DataError: the score has no parts of single examples, or no answer has a probability.
    """
    parts = scored.per_example
    if parts is None or scored.headline.is_error:
        raise DataError(
            f"confidence is compared with right and wrong, but {scored.headline.name} of "
            f"{scored.task.name} gives single answers no score; use another task"
        )
    full = max(float(np.nanmax(parts)), 1.0) if len(parts) else 1.0
    known = [
        (k, math.exp(min(one.logprob, 0.0)))
        for k, one in enumerate(scored.predictions)
        if one.logprob is not None and math.isfinite(parts[k])
    ]
    positions = np.array([k for k, _ in known], np.int64)
    return Outcomes(
        confidence=np.array([p for _, p in known], np.float64),
        is_hit=parts[positions] >= RIGHT * full,
        label=[""] * len(known),
        num_true={},
        image=positions,
    )


def object_outcomes(scored: Scored) -> Outcomes:
    """Boxes: a hit takes the free object of its label that it overlaps most, the surest box first.

    Boxes without a confidence are left out, and so are those that cover an ignored region.

    Raises:
        DataError: no box has a confidence.
    """
    rows: list[tuple[float, bool, str, int]] = []
    num_true: Counter[str] = Counter()
    for position, (example, answer) in enumerate(
        zip(scored.examples, scored.predictions, strict=True)
    ):
        truth = true_objects(example.references) or []
        num_true.update(one.label for one in truth if not one.is_ignored)
        found = [one for one in answer.objects if one.score is not None]
        for one, is_hit in matched(found, truth):
            rows.append((float(one.score or 0.0), is_hit, one.label, position))
    return Outcomes(
        confidence=np.array([row[0] for row in rows], np.float64),
        is_hit=np.array([row[1] for row in rows], bool),
        label=[row[2] for row in rows],
        num_true=dict(num_true),
        image=np.array([row[3] for row in rows], np.int64),
    )


def matched(
    found: Sequence[FoundObject], truth: Sequence[TrueObject]
) -> list[tuple[FoundObject, bool]]:
    """Boxes of one picture, the surest first, with whether each found an object."""
    free = list(truth)
    out = []
    for one in sorted(found, key=lambda item: -(item.score or 0.0)):
        own = [true for true in free if true.label == one.label]
        if not own:
            out.append((one, False))
            continue
        boxes = np.array([true.box_yxyx for true in own], np.float64)
        iou = box_iou(np.array([one.box_yxyx], np.float64), boxes)
        # An ignored region may be covered any number of times.
        best = max(
            range(len(own)), key=lambda k: (iou[k] >= MIN_IOU, not own[k].is_ignored, iou[k])
        )
        if iou[best] < MIN_IOU:
            out.append((one, False))
        elif not own[best].is_ignored:
            free.remove(own[best])
            out.append((one, True))
    return out


def true_objects(references: Any) -> list[TrueObject] | None:
    """The objects that references hold, or None where they hold none of that kind.

    Understood: one object with `box_yxyx`, lists of them under `objects`, `boxes` beside `labels`,
    all normalised; COCO's `bbox` and the outlines of `words`, in pixels beside `size_hw`.

    Raises:
        DataError: they are of such a kind, but a value is damaged.
    """
    try:
        return _true_objects(references)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(
            f"references must hold objects with boxes of four numbers, got {references!r:.80} "
            f"({str(error)[:80]}); run the benchmark again in a new folder"
        ) from error


def _true_objects(references: Any) -> list[TrueObject] | None:
    if not isinstance(references, Mapping):
        return None
    if "box_yxyx" in references:
        return [_object(references, (1.0, 1.0))]
    rows = references.get("objects", references.get("words"))
    if rows is None:
        boxes, labels = references.get("boxes"), references.get("labels")
        if boxes is None or labels is None:
            return None
        pairs = zip(boxes, labels, strict=True)
        rows = [{"box_yxyx": box, "label": label} for box, label in pairs]
    height, width = references.get("size_hw", (1.0, 1.0))
    is_known = all(isinstance(row, Mapping) and _PLACES & set(row) for row in rows)
    return [_object(row, (height, width)) for row in rows] if is_known else None


_PLACES = {"box_yxyx", "bbox", "vertices"}


def _object(row: Mapping[str, Any], size_hw: tuple[float, float]) -> TrueObject:
    if "box_yxyx" in row:
        y0, x0, y1, x1 = map(float, row["box_yxyx"])
    else:
        if "bbox" in row:
            x, y, w, h = map(float, row["bbox"])
            corners = [x, y, x + w, y + h]
        else:
            corners = [*np.min(row["vertices"], axis=0), *np.max(row["vertices"], axis=0)]
        y0, x0, y1, x1 = box_xyxy_px_to_yxyx(corners, size_hw[::-1])
    return TrueObject(
        label=str(row.get("label", row.get("text", ""))),
        box_yxyx=(y0, x0, y1, x1),
        is_ignored=bool(row.get("is_crowd") or row.get("iscrowd")) or not row.get("legible", True),
        mask=row.get("mask"),
    )
