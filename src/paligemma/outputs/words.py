"""What JSON and a terminal show of an answer; the command line and a server share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.rle import decode_rle
from paligemma.outputs.types import Detection, TextAnswer


def detections_json(
    items: Sequence[Detection], *, text: str, rest: str, exact: bool = False
) -> dict[str, Any]:
    """The JSON object of detections, which `to_json()`, `--json` and written files share.

    Args:
        exact: keep every digit, for files that are read again.

    Returns:
        `{"detections", "text", "rest"}`. Each detection is `{"label", "score", "box_xyxy_px",
        "box_yxyx"}`, with `"mask"` (COCO run lengths) where there is one and `"valid": false`
        where the box is empty or swapped.
    """
    found = [_detection_json(item, exact=exact) for item in items]
    return {"detections": found, "text": text, "rest": rest}


def detection_from_json(one: Any, image_wh: tuple[int, int]) -> Detection:
    """The object of a record of `detections_json`.

    Raises:
        KeyError, TypeError, ValueError: it is no such record, or its mask is of another picture.
    """
    y0, x0, y1, x1 = map(float, one["box_yxyx"])
    region = None
    if "mask" in one:
        if tuple(one["mask"]["size"]) != (image_wh[1], image_wh[0]):
            raise ValueError("a mask of another size than its picture")
        region = MaskRegion.from_array(decode_rle(one["mask"]))
    return Detection(
        label=one["label"],
        box_yxyx=(y0, x0, y1, x1),
        image_wh=image_wh,
        score=one["score"],
        region=region,
    )


def object_json(item: Detection) -> dict[str, Any]:
    """The record of one object, as `detections_json` has it."""
    return _detection_json(item, exact=False)


def _detection_json(item: Detection, *, exact: bool) -> dict[str, Any]:
    score, box = item.score, item.box_yxyx
    record: dict[str, Any] = {
        "label": item.label,
        "score": score if exact or score is None else round(score, 6),
        "box_xyxy_px": [round(v, 2) for v in item.box_xyxy_px],
        "box_yxyx": [float(v) if exact else round(v, 6) for v in box],
    }
    if item.region is not None:
        record["mask"] = item.region.to_rle()
    if not item.is_valid:
        record["valid"] = False
    return record


def detections_text(items: Sequence[Detection], *, text: str, rest: str) -> str:
    """A table of detections, one line each: label, confidence, box in pixels, area of the mask.

    Args:
        items: the objects.
        text: the model's whole output, shown where there is no object.
        rest: the part of the text that belongs to no object, shown in a last line.
    """
    if not items:
        return f"nothing found: {text!r}"
    width = max(len(item.label or "") for item in items)
    lines = []
    for item in items:
        box = "".join(f"{round(value):6d}" for value in item.box_xyxy_px)
        score = "    -" if item.score is None else f"{item.score:5.2f}"
        mask = "" if item.region is None else f"   mask {item.region.area_px} px"
        empty = "" if item.is_valid else "   (empty box)"
        lines.append(f"{item.label or '':{width}} {score}  {box}{mask}{empty}")
    if rest:
        lines.append(f"and besides: {rest}")
    return "\n".join(lines)


def answer_line(answer: TextAnswer | Sequence[Detection]) -> str:
    """An answer on a single line, for lists of many pictures."""
    if isinstance(answer, TextAnswer):
        return " ".join(answer.text.split())
    parts = []
    for item in answer:
        box = " ".join(str(round(value)) for value in item.box_xyxy_px)
        score = "" if item.score is None else f" {item.score:.2f}"
        parts.append(f"{item.name}{score} ({box})")
    return " ; ".join(parts) or "nothing found"


def token_json(
    token: int, logprob: float, decode: Callable[[Sequence[int]], str]
) -> dict[str, Any]:
    """`{"id", "text", "logprob"}` of one token of an answer; the end token has no text."""
    return {"id": token, "text": decode([token]), "logprob": logprob}
