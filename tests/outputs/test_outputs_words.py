"""What JSON and a terminal show of an answer."""

from __future__ import annotations

import json

import numpy as np

from paligemma.outputs.detections import Detections
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.rle import decode_rle
from paligemma.outputs.types import Detection, TextAnswer
from paligemma.outputs.words import answer_line

WH = (100, 200)
MASK = np.zeros((200, 100), bool)
MASK[20:60, 20:40] = True


def found() -> Detections:
    whole = Detection(label="big cat", box_yxyx=(0.1, 0.2, 0.5, 0.6), image_wh=WH, score=0.5)
    region = MaskRegion.from_array(MASK)
    masked = Detection(
        label="dog", box_yxyx=(0.1, 0.2, 0.3, 0.4), image_wh=WH, score=0.75, region=region
    )
    empty = Detection(label=None, box_yxyx=(0.5, 0.5, 0.5, 0.5), image_wh=WH)
    return Detections(items=(whole, masked, empty), image_wh=WH, text="<loc...", rest="what else")


def test_a_terminal_shows_label_confidence_pixels_and_area() -> None:
    assert str(found()).splitlines() == [
        "big cat  0.50      20    20    60   100",
        "dog      0.75      20    20    40    60   mask 800 px",
        "            -      50   100    50   100   (empty box)",
        "and besides: what else",
    ]
    assert answer_line(found()[::2]) == "big cat 0.50 (20 20 60 100) ; object (50 100 50 100)"
    nothing = Detections(items=(), image_wh=WH, text="no cats", rest="no cats")
    assert str(nothing) == "nothing found: 'no cats'"
    assert answer_line(nothing) == "nothing found"


def test_json_holds_objects_text_and_rest_and_a_mask_where_there_is_one() -> None:
    body = json.loads(json.dumps(found().to_json()))
    whole, masked, empty = body.pop("detections")
    assert body == {"text": "<loc...", "rest": "what else"}
    assert whole == {
        "label": "big cat",
        "score": 0.5,
        "box_xyxy_px": [20, 20, 60, 100],
        "box_yxyx": [0.1, 0.2, 0.5, 0.6],
    }
    assert np.array_equal(decode_rle(masked["mask"]), MASK)
    assert (empty["label"], empty["score"], empty["valid"]) == (None, None, False)


def test_an_answer_in_words_shows_as_its_text() -> None:
    answer = TextAnswer(text="two\n<loc0001> *lines* ", score=0.98765)
    assert str(answer) == f"{answer}" == answer.text
    assert repr(answer) == "TextAnswer('two\\n<loc0001> *lines* ', score=0.988)"
    assert repr(TextAnswer(text="yes")) == "TextAnswer('yes')"
    assert answer_line(answer) == "two <loc0001> *lines*"


class Printer:
    """The part of IPython's printer that an object calls."""

    def __init__(self) -> None:
        self.shown = ""

    def text(self, text: str) -> None:
        self.shown += text


def test_a_notebook_shows_an_answer_in_words_as_plain_text() -> None:
    printer = Printer()
    TextAnswer(text="a *red* <loc0001> star")._repr_pretty_(printer, cycle=False)
    assert printer.shown == "a *red* <loc0001> star"
