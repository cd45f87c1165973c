"""The objective of naming: image tokens know, half-way, what the prompt speaks of."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scene_training import FIELD_PX, small_source

from paligemma.scenes import (
    KINDS,
    Scene,
    SceneExample,
    SceneObject,
    SceneOptions,
    draw_scene,
    scene_examples,
)
from paligemma.scenes.language import phrase_matches
from paligemma.tiny.naming import NamingHead, named_objects, named_patches, naming_loss


def _scene(*names: str) -> Scene:
    """A strip of objects, 16 px each."""
    objects = []
    for k, name in enumerate(names):
        color, label, *text = name.split()
        box = (0.0, k / len(names), 1.0, (k + 1) / len(names))
        objects.append(SceneObject(label=label, color=color, text="".join(text), box_yxyx=box))
    side = 16 * len(names)
    owners = np.repeat(np.arange(1, len(names) + 1, dtype=np.uint8), 16)
    return Scene(
        image=np.zeros((side, side, 3), np.uint8),
        objects=tuple(objects),
        object_map=np.tile(owners, (side, 1)),
        seed=0,
    )


SCENE = _scene("red circle", "blue circle", "blue star", "green digit 7", "red sign STOP")


@pytest.mark.parametrize(
    ("kind", "prefix", "first", "second"),
    [
        ("count", "answer en how many circles are there?", {0, 1}, set()),
        ("count", "answer en how many crosses are there?", set(), set()),
        ("count", "answer en how many objects are there?", {0, 1, 2, 3, 4}, set()),
        ("color", "answer en what color is the star?", {2}, set()),
        ("presence", "answer en is there a blue circle?", {1}, set()),
        ("presence", "answer en is there a green star?", set(), set()),
        ("position", "answer en where is the red sign?", {4}, set()),
        ("reading", "answer en what digit is it?", {3}, set()),
        ("reading", "answer en what does the sign say?", {4}, set()),
        ("comparison", "answer en is the star above the red circle?", {2}, {0}),
        ("comparison", "answer en are there more stars than circles?", {2}, {0, 1}),
        ("comparison", "answer en is the digit bigger than the blue circle?", {3}, {1}),
        ("detect", "detect star ; red circle ; cross", {0, 2}, set()),
        ("segment", "segment digit", {3}, set()),
        ("caption", "caption en", {0, 1, 2, 3, 4}, set()),
        ("ocr", "ocr", {3, 4}, set()),
    ],
)
def test_a_prompt_names_these(kind: str, prefix: str, first: set[int], second: set[int]) -> None:
    task = kind if kind in ("detect", "segment", "caption", "ocr") else "answer"
    example = SceneExample(task=task, kind=kind, prefix=prefix, suffix="")
    assert named_objects(SCENE, example) == (first, second)


def test_a_region_names_its_object_and_an_answer_names_nothing() -> None:
    box = SCENE.objects[3].box_yxyx
    region = SceneExample(
        task="caption_region", kind="caption_region", prefix="caption ", suffix="", prefix_box=box
    )
    assert named_objects(SCENE, region) == ({3}, set())
    question = SceneExample(task="question", kind="question", prefix="question en red", suffix="")
    assert named_objects(SCENE, question) is None


def test_every_prompt_of_drawn_scenes_is_understood() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        scene = draw_scene(seed, SceneOptions(size_px=224, thing_share=0.5 * (seed % 2)))
        for example in scene_examples(scene, np.random.default_rng(seed)):
            seen[example.kind] += 1
            named = named_objects(scene, example)
            if example.kind == "question":
                assert named is None
                continue
            assert named is not None
            first, second = named
            if example.kind == "neighbour":
                assert len(first) == 1
                assert second == set(example.objects)
                (index,) = second
                assert scene.objects[index].label == example.suffix
            elif example.objects:
                assert first == set(example.objects)
            if example.kind == "comparison":
                assert first
                assert second
                assert not first & second
            if example.kind == "presence":
                assert (example.suffix == "yes") == bool(first)
            if example.kind == "color":
                (index,) = first
                assert scene.objects[index].color == example.suffix
            if example.kind == "count" and "objects" not in example.prefix:
                assert str(len(first)) == example.suffix
            for index in first if example.kind in ("segment", "detect") else ():
                assert any(phrase_matches(p, scene.objects[index]) for p in example.labels)
    assert set(seen) == set(KINDS)


def test_patches_say_whose_they_are_and_where_centres_lie() -> None:
    owners = np.array([0, 0, 1, -1, 2])
    says = named_patches(({0, 2}, {1}), owners, np.array([1, 2, 3]))
    assert says[:, 0].tolist() == [1, 1, 0, 0, 1]
    assert says[:, 1].tolist() == [0, 0, 1, 0, 0]
    # The centre of a ring may lie on a patch that is not its own.
    assert says[:, 2].tolist() == [0, 1, 0, 1, 0]
    assert says[:, 3].tolist() == [0, 0, 1, 0, 0]
    assert np.isnan(named_patches(None, owners, np.array([1, 2, 3]))).all()


def test_a_batch_says_it_of_every_row() -> None:
    source = small_source(window_px=FIELD_PX, num_scenes=3, prompts_per_scene=4, naming=True)
    named = source.batch(0).named
    assert named is not None
    assert named.shape == (12, 36, 4)
    rows = named[~named[:, 0, 0].isnan()]
    assert 0 < rows[..., 0].mean() < 0.5
    # No more centres than objects.
    assert rows[..., 2:].sum(dim=(1, 2)).max() <= source.stage.scenes.num_objects_max
    assert small_source(window_px=FIELD_PX).batch(0).named is None


def test_the_loss_is_binary_cross_entropy_without_rows_that_name_nothing() -> None:
    logits, targets = torch.randn(3, 5, 4), (torch.rand(3, 5, 4) > 0.5).float()
    targets[1] = float("nan")
    chance = torch.where(targets > 0.5, logits.sigmoid(), 1 - logits.sigmoid())
    slow = -chance[[0, 2]].log().sum() / 10
    assert naming_loss(logits, targets).item() == pytest.approx(slow.item(), rel=1e-5)
    assert naming_loss(logits[1:2], targets[1:2]).item() == 0.0


def test_a_head_begins_by_saying_no() -> None:
    torch.manual_seed(0)
    answers = NamingHead(32)(torch.randn(2, 9, 32)).sigmoid()
    assert answers.shape == (2, 9, 4)
    assert answers.max() < 0.2
