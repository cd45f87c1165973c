"""Asking a loaded model: every way to ask, and that they agree with one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma import Detections, PaliGemma, TextAnswer

DESK = Path(__file__).parents[2] / "examples" / "desk.png"


def test_caption_answer_and_read_give_text_with_the_probability_of_their_tokens(
    random_tiny: PaliGemma,
) -> None:
    answers = [
        random_tiny.caption(DESK, max_new_tokens=4),
        random_tiny.answer(DESK, "what color is the circle?", max_new_tokens=4),
        random_tiny.read(DESK, max_new_tokens=4),
    ]
    for answer in answers:
        assert isinstance(answer, TextAnswer)
        assert len(answer.token_logprobs) <= 4
        assert answer.score == pytest.approx(np.exp(sum(answer.token_logprobs)))


def test_a_constrained_detection_names_only_what_was_asked_in_pixels_of_the_original(
    random_tiny: PaliGemma,
) -> None:
    found = random_tiny.detect(DESK, ["digit", "circle"], constrain=True, max_new_tokens=24)
    assert isinstance(found, Detections)
    assert found.image_wh == (640, 480)
    assert found
    for item in found:
        assert item.label in ("digit", "circle")
        y0, x0, y1, x1 = item.box_yxyx
        assert item.box_xyxy_px == pytest.approx((x0 * 640, y0 * 480, x1 * 640, y1 * 480))
        assert y0 <= y1
        assert x0 <= x1


def test_pictures_given_as_path_bytes_pillow_and_array_get_one_answer(
    random_tiny: PaliGemma,
) -> None:
    picture = Image.open(DESK)
    answers = {
        random_tiny.read(source, max_new_tokens=6).token_logprobs
        for source in (DESK, str(DESK), DESK.read_bytes(), picture, np.asarray(picture))
    }
    assert len(answers) == 1
