"""Hostile answers of a model: parsed, shown as JSON and text, and written to a terminal."""

from __future__ import annotations

import io
import json
import random

from fuzz.folders import OBEYED

from paligemma.cli.terminal import GuardedStream
from paligemma.outputs.boxes import as_box, decode_boxes
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.types import Detection, TextAnswer
from paligemma.outputs.words import answer_line, detections_json, detections_text

NAME = "answers"
MAX_MB = 256

_PIECES = (
    *("<loc0000>", "<loc1023>", "<loc0512>", "<loc1024>", "<loc٣٣٣٣>", "<seg000>", "<seg127>"),
    *("<seg128>", "<seg005>" * 16, "<loc0100><loc0200><loc0600><loc0700>", "<loc", "loc0000>"),
    *(" ; ", ";", ";;", " ", "\n", "\t", "cat", "é日本😀", "<eos>", "<image>", "{", '"', "\\"),
    *("\x1b]0;t\x07", "\x1b[2J", "\x00", "\r", "\x7f", "\x9b31m", "\u202e", "\u2066", "\ud800"),
)


def make(rng: random.Random) -> tuple[str, str]:
    """Pieces of objects, separators and characters in any order; sometimes thousands."""
    pieces = rng.choices(_PIECES, k=rng.choice((0, 3, 10, 40, 40, 3000)))
    pieces += [chr(rng.randrange(0x3000)) for _ in range(rng.choice((0, 5, 50)))]
    rng.shuffle(pieces)
    text = "".join(pieces)
    return repr(text[:120]), text


def attempt(given: str) -> None:
    """Parse, show and write it.

    Raises:
        AssertionError: a character of the text was lost, or reached the terminal raw.
    """
    parsed = parse_objects(given)
    assert parsed.text == given
    items = [
        Detection(label=one.label, box_yxyx=as_box(decode_boxes(one.loc)), image_wh=(640, 480))
        for one in parsed.objects
    ]
    kept = parsed.rest + "".join(one.label or "" for one in parsed.objects)
    assert kept.count("cat") == given.count("cat")
    body = detections_json(items, text=given, rest=parsed.rest)
    assert json.loads(json.dumps(body))["text"] == given
    stream = io.StringIO()
    guarded = GuardedStream(stream)
    guarded.write(detections_text(items, text=given, rest=parsed.rest))
    guarded.write(answer_line(items) + answer_line(TextAnswer(text=given)))
    guarded.write(json.dumps(body, ensure_ascii=False))
    assert not OBEYED.search(stream.getvalue())
