"""What JSON and a terminal show of an answer; the command line and a server share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paligemma.outputs.types import Detection, TextAnswer


def detections_json(items: Sequence[Detection], *, text: str, rest: str) -> dict[str, Any]:
    """The JSON object of detections, which `to_json()`, `--json` and written files share.

    Returns:
        `{"detections", "text", "rest"}`. Each detection is `{"label", "score", "box_xyxy_px",
        "box_yxyx"}`, with `"mask"` (COCO run lengths) where there is one and `"valid": false`
        where the box is empty or swapped.
    """
    return {"detections": [_detection_json(item) for item in items], "text": text, "rest": rest}


def _detection_json(item: Detection) -> dict[str, Any]:
    record: dict[str, Any] = {
        "label": item.label,
        "score": None if item.score is None else round(item.score, 6),
        "box_xyxy_px": [round(v, 2) for v in item.box_xyxy_px],
        "box_yxyx": [round(v, 6) for v in item.box_yxyx],
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
