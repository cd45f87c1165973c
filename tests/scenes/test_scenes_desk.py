"""The picture of the demo is the one that is drawn, and shows what the demo asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma import PaliGemma
from paligemma.cli.demo import PROMPTS
from paligemma.scenes import Scene
from paligemma.scenes.desk import draw_desk, heldout_digit

PICTURE = Path(__file__).parents[2] / "examples" / "desk.png"


@pytest.fixture(scope="module")
def desk() -> Scene:
    return draw_desk()


def test_the_picture_of_the_repository_is_the_one_that_is_drawn(desk: Scene) -> None:
    stored = np.asarray(Image.open(PICTURE)).astype(int)
    assert stored.shape == (480, 640, 3)
    # Another Pillow may round a resampled background differently by a step.
    assert np.abs(stored - desk.image).mean() < 1.0


def test_it_shows_three_things_a_heldout_digit_a_sign_and_two_shapes(desk: Scene) -> None:
    assert [(o.color, o.label, o.text) for o in desk.objects] == [
        ("red", "heart", ""),
        ("yellow", "sign", "HELLO"),
        ("", "cat", ""),
        ("blue", "star", ""),
        ("", "pizza", ""),
        ("white", "digit", "5"),
        ("", "trumpet", ""),
    ]
    assert heldout_digit(5, 2) % 5 == 0


def test_the_demo_asks_for_what_it_shows(desk: Scene) -> None:
    labels = {item.label for item in desk.objects}
    named: dict[str, set[str]] = {"detect": set(), "segment": set()}
    for task, _, rest in (prompt.partition(" ") for prompt in PROMPTS):
        if task in named:
            named[task] |= set(rest.split(" ; "))
    assert {task: len(found) for task, found in named.items()} == {"detect": 5, "segment": 3}
    assert named["detect"] | named["segment"] <= labels


def test_its_objects_stay_large_enough_when_the_picture_is_shrunk_to_224(desk: Scene) -> None:
    for item in desk.objects:
        y0, x0, y1, x1 = item.box_yxyx
        assert min(y1 - y0, x1 - x0) * 224 >= 26


def test_the_embedded_model_tells_all_and_finds_what_the_pages_ask_for(desk: Scene) -> None:
    model = PaliGemma.from_pretrained("tiny")
    picture = model.encode_image(PICTURE)
    assert model.caption(picture).text == (
        "a red heart, a yellow sign saying HELLO, a white digit 5, a pizza, a cat, a trumpet and "
        "a blue star"
    )
    truth = {item.label: np.array(item.box_yxyx) for item in desk.objects}
    for asked in (
        *("cat", "pizza", "trumpet", "star", "cat ; pizza", "star ; heart", "star ; digit"),
        *("cat ; pizza ; trumpet", "cat ; pizza ; trumpet ; digit", "star ; heart ; digit"),
        "cat ; pizza ; trumpet ; star ; digit",
    ):
        found = model.detect(picture, asked)
        assert sorted(found.labels) == sorted(asked.split(" ; "))
        for item in found:
            assert _iou(np.array(item.box_yxyx), truth[item.label]) > 0.5, (asked, item)
    assert len(model.detect(picture, "dog")) == 0


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    shared = float(sides.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)
