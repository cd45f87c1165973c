"""The scenes benchmark: which prompts, which truths, which scores."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from paligemma.errors import ConfigError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.outputs.rle import encode_rle
from paligemma.scenes import Scene, SceneExample, SceneObject
from paligemma.tasks.scenes.rows import (
    EVAL_SEED,
    MAX_SCENES,
    TASKS,
    asking_for,
    benchmark_examples,
    heldout_scene,
    scenes_task,
)
from paligemma.tasks.scenes.scores import KINDS, references_of, score_answer, score_scenes


def _object(label: str, box: tuple[float, float, float, float]) -> SceneObject:
    return SceneObject(label=label, color="red", text="", box_yxyx=box)


def _two_stars() -> Scene:
    """Two 10 px squares called stars, at the left and at the right of a 40 px picture."""
    object_map = np.zeros((40, 40), np.uint8)
    object_map[0:10, 0:10], object_map[0:10, 20:30] = 1, 2
    objects = (_object("star", (0, 0, 0.25, 0.25)), _object("star", (0, 0.5, 0.25, 0.75)))
    image = np.zeros((40, 40, 3), np.uint8)
    return Scene(image=image, objects=objects, object_map=object_map, seed=7)


def _example(task: str, prefix: str, suffix: str | None = None) -> SceneExample:
    if suffix is not None:
        return SceneExample(task=task, kind=task, prefix=prefix, suffix=suffix)
    return SceneExample(
        task=task, kind=task, prefix=prefix, suffix=None, objects=(0, 1), labels=("star", "star")
    )


def _posed(task: str, prefix: str, suffix: str | None = None) -> Example:
    references = references_of(_two_stars(), _example(task, prefix, suffix))
    assert json.loads(json.dumps(references)) == references
    return Example(id="x", prefix=prefix, pictures=(), references=references)


def _said(text: str, *objects: FoundObject) -> Prediction:
    return Prediction(id="x", text=text, objects=objects)


def _masked(*regions: tuple[slice, slice]) -> Prediction:
    found = []
    for region in regions:
        mask = np.zeros((40, 40), bool)
        mask[region] = True
        found.append(FoundObject(label="star", box_yxyx=(0, 0, 1, 1), mask=encode_rle(mask)))
    return _said("", *found)


def test_benchmark_pictures_are_the_same_every_time_and_no_training_picture() -> None:
    one, again = heldout_scene(3, seed=2), heldout_scene(3, seed=2)
    np.testing.assert_array_equal(one.image, again.image)
    assert one.image.shape == (224, 224, 3)
    assert one.seed == EVAL_SEED + 2 * MAX_SCENES + 3
    assert heldout_scene(3, seed=1).seed != one.seed


@pytest.mark.parametrize(("index", "seed"), [(-1, 0), (MAX_SCENES, 0), (0, -1), (0, 1_000_000)])
def test_pictures_outside_the_benchmark_are_refused(index: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="pictures 0"):
        heldout_scene(index, seed=seed)


def test_detection_asks_for_every_label_and_one_or_two_that_are_not_there() -> None:
    distractors = Counter()
    for index in range(40):
        scene = heldout_scene(index, size_px=112)
        example = next(e for e in benchmark_examples(scene, index) if e.task == "detect")
        asked = example.prefix.removeprefix("detect ").split(" ; ")
        present = {one.label for one in scene.objects}
        assert present <= set(asked)
        assert len(set(asked)) == len(asked)
        assert sorted(example.objects) == list(range(len(scene.objects)))
        distractors[len(asked) - len(present)] += 1
    assert set(distractors) == {1, 2}


def test_kinds_of_question_take_turns() -> None:
    kinds = Counter()
    for index in range(60):
        scene = heldout_scene(index, size_px=112)
        kinds.update(e.kind for e in benchmark_examples(scene, index) if e.task == "answer")
    assert sum(kinds.values()) == 60
    assert set(kinds) == {"color", "count", "presence", "position", "reading", "comparison"}
    assert min(kinds.values()) >= 5


def test_a_prompt_does_not_depend_on_the_other_tasks_asked() -> None:
    scene = heldout_scene(4, size_px=112)
    every = {e.task: e for e in benchmark_examples(scene, 4)}
    for task in every:
        assert benchmark_examples(scene, 4, (task,)) == [every[task]]


def test_captions_are_asked_of_every_fourth_picture() -> None:
    scene = heldout_scene(0, size_px=112)
    asked = [[e.task for e in benchmark_examples(scene, k)] for k in range(4)]
    assert asked[0] == list(KINDS)
    assert asked[1] == asked[2] == asked[3] == ["detect", "segment", "answer", "ocr"]


def test_the_masks_of_an_answer_are_joined_before_they_are_compared() -> None:
    example = _posed("segment", "segment star")
    both = _masked(np.s_[0:10, 0:10], np.s_[0:10, 20:30])
    one = _masked(np.s_[0:10, 0:10])
    shifted = _masked(np.s_[0:10, 0:10], np.s_[0:10, 25:35])
    assert score_answer(example, both).part == 1.0
    assert score_answer(example, one).part == 0.5
    assert score_answer(example, shifted).part == 150 / 250
    assert score_answer(example, _said("no")).part == 0.0
    assert score_answer(example, both).slice == "star"


def test_words_are_compared_exactly_but_for_spaces_around_them() -> None:
    example = _posed("answer", "answer en how many stars are there?", "2")
    scores = [score_answer(example, _said(text)).part for text in (" 2 ", "2.", "")]
    assert scores == [1.0, 0.0, 0.0]


def test_reading_counts_edited_characters() -> None:
    outcome = score_answer(_posed("ocr", "ocr", "STOP 7"), _said("SHOP7"))
    assert (outcome.part, outcome.total) == (2.0, 6.0)


def test_boxes_without_confidence_are_certain() -> None:
    answer = _said("", FoundObject(label="star", box_yxyx=(0.0, 0.0, 0.25, 0.25)))
    outcome = score_answer(_posed("detect", "detect star"), answer)
    assert outcome.boxes is not None
    assert outcome.boxes.boxes.tolist() == [[0.0, 0.0, 0.25, 0.25]]
    assert outcome.boxes.scores.tolist() == [1.0]
    assert outcome.boxes.true_boxes.shape == (2, 4)
    assert list(outcome.boxes.true_labels) == ["star", "star"]


def test_a_row_of_the_benchmark_reads_its_pictures_and_asks_each_kind_its_own_way() -> None:
    (row,) = TASKS
    assert (row.name, row.headline, row.splits) == ("scenes", "detect_ap50", ("heldout",))
    task = scenes_task(limit=4, seed=5, size_px=112, kinds=("answer", "segment", "caption"))
    assert task.headline == "segment_miou"
    examples = list(task.read(Path(), "heldout"))
    scene = heldout_scene(1, seed=5, size_px=112)
    second = [one for one in examples if one.unit == str(scene.seed)]
    assert [one.id for one in second] == [
        f"scenes/{scene.seed}/segment",
        f"scenes/{scene.seed}/answer",
    ]
    np.testing.assert_array_equal(second[0].pictures[0].read(10**6), scene.image)
    asked = {one.references["task"]: asking_for(one) for one in examples}
    assert {name: (one.answer, one.max_new_tokens) for name, one in asked.items()} == {
        "segment": ("mask", 64),
        "answer": ("text", 12),
        "caption": ("text", 64),
    }


def test_figures_are_over_all_prompts_and_a_sample_without_objects_leaves_them_undefined() -> None:
    examples = list(scenes_task(limit=4, size_px=112).read(Path(), "heldout"))
    silent = [Prediction(id=one.id, text="") for one in examples]
    measures = {one.name: one for one in score_scenes(examples, silent)}
    assert {one.num for one in measures.values()} == {len(examples)}
    assert measures["detect_ap50"].value == 0.0
    assert measures["ocr_cer"].value == 1.0
    assert measures["ocr_cer"].is_error
    weights = np.array([one.references["task"] != "detect" for one in examples], np.int64)
    assert np.isnan(measures["detect_ap50"].statistic(weights))
    assert measures["answer_accuracy"].statistic(weights) == 0.0
