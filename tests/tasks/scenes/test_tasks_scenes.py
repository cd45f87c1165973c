"""The scenes benchmark: which prompts, which truths, which scores."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

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
from paligemma.tasks.scenes.scores import SCENE_KINDS, references_of, score_answer, score_scenes


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
    assert asked[0] == list(SCENE_KINDS)
    assert asked[1] == asked[2] == asked[3] == ["detect", "segment", "answer", "ocr"]


def test_the_masks_of_an_answer_are_joined_before_they_are_compared() -> None:
    example = _posed("segment", "segment star")
    both = _masked(np.s_[0:10, 0:10], np.s_[0:10, 20:30])
    one = _masked(np.s_[0:10, 0:10])
    shifted = _masked(np.s_[0:10, 0:10], np.s_[0:10, 25:35])
    assert score_answer(example, both) == (1.0, 1.0)
    assert score_answer(example, one) == (0.5, 1.0)
    assert score_answer(example, shifted) == (150 / 250, 1.0)
    assert score_answer(example, _said("no")) == (0.0, 1.0)
    assert example.references["slice"] == "star"


def test_words_are_compared_exactly_but_for_spaces_around_them() -> None:
    example = _posed("answer", "answer en how many stars are there?", "2")
    scores = [score_answer(example, _said(text))[0] for text in (" 2 ", "2.", "")]
    assert scores == [1.0, 0.0, 0.0]


def test_reading_counts_edited_characters() -> None:
    assert score_answer(_posed("ocr", "ocr", "STOP 7"), _said("SHOP7")) == (2.0, 6.0)


LABELS = ("circle", "sign", "star")


def _pictures(rng: np.random.Generator, num: int) -> tuple[list[Example], list[Prediction]]:
    """A few objects each, some found well, some badly, some twice, some under another name."""
    examples, answers = [], []
    for k in range(num):
        corner = rng.uniform(0, 0.6, (int(rng.integers(0, 6)), 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, corner.shape)], axis=1)
        names = rng.choice(LABELS, len(boxes)).tolist()
        objects = [
            {"label": name, "box_yxyx": box.tolist()}
            for name, box in zip(names, boxes, strict=True)
        ]
        found = [FoundObject(label="cat", box_yxyx=(0.1, 0.1, 0.3, 0.4), score=0.5)]
        for one in rng.integers(0, len(boxes), size=int(rng.integers(0, 8))) if objects else []:
            label = names[one] if rng.random() < 0.8 else str(rng.choice(LABELS))
            box = tuple((boxes[one] + rng.uniform(-0.04, 0.04, 4)).tolist())
            # With one decimal ties occur, and their order has to be COCO's.
            found.append(FoundObject(label=label, box_yxyx=box, score=round(rng.random(), 1)))
        references = {"task": "detect", "slice": "detect", "objects": objects}
        examples.append(Example(id=str(k), prefix="", pictures=(), references=references))
        answers.append(Prediction(id=str(k), text="", objects=tuple(found)))
    return examples, answers


def _by_pycocotools(
    truth: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]], labels: tuple[str, ...]
) -> np.ndarray:
    """Average precision float64[T, labels]."""
    coco_module = pytest.importorskip("pycocotools.coco")
    eval_module = pytest.importorskip("pycocotools.cocoeval")

    def rows(images: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        every = [
            {
                "image_id": number,
                "category_id": labels.index(row["label"]) + 1,
                "bbox": row["bbox"],
                "score": row.get("score", 1.0),
                "area": row["bbox"][2] * row["bbox"][3],
                "iscrowd": 0,
            }
            for number, image in enumerate(images, start=1)
            for row in image
        ]
        return [{"id": number, **row} for number, row in enumerate(every, start=1)]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": k + 1, "width": 1, "height": 1} for k in range(len(truth))],
            "annotations": rows(truth),
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(labels)],
        }
        coco.createIndex()
        evaluation = eval_module.COCOeval(coco, coco.loadRes(rows(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # [T, R, K, A, M] at area "all" and 100 detections.
    return evaluation.eval["precision"][:, :, :, 0, 2].mean(axis=1)


def _rows(boxes: list[tuple[str, Any, float]]) -> list[dict[str, Any]]:
    return [
        {"label": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for label, (y0, x0, y1, x1), score in boxes
    ]


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    examples, answers = _pictures(np.random.default_rng(seed), 25)
    truth = [
        _rows([(o["label"], o["box_yxyx"], 1.0) for o in e.references["objects"]]) for e in examples
    ]
    found = [_rows([(o.label, o.box_yxyx, o.score) for o in a.objects]) for a in answers]
    measures = {one.name: one.value for one in score_scenes(examples, answers)}
    known = [[row for row in image if row["label"] in LABELS] for image in found]
    by_label = _by_pycocotools(truth, known, LABELS)
    assert 0.1 < measures["detect_ap50"] < 0.9
    assert measures["detect_ap50"] == pytest.approx(by_label[0].mean(), abs=1e-12)
    assert measures["detect_ap"] == pytest.approx(by_label.mean(), abs=1e-12)
    for name, expected in zip(LABELS, by_label[0], strict=True):
        assert measures[f"detect_ap50/{name}"] == pytest.approx(expected, abs=1e-12)
    # One ranking of all labels: every label of a picture is a picture of its own.
    parts = [
        [[{**row, "label": "object"} for row in rows[k] if row["label"] == name] for rows in both]
        for both in [(truth, found)]
        for k in range(len(examples))
        for name in ("cat", *LABELS)
    ]
    pooled = _by_pycocotools([one for one, _ in parts], [one for _, one in parts], ("object",))
    assert measures["detect_ap50_pooled"] == pytest.approx(pooled[0, 0], abs=1e-12)
    assert pooled[0, 0] < by_label[0].mean()


def test_a_box_under_another_name_counts_only_in_the_ranking_of_all_labels() -> None:
    box = (0.0, 0.0, 0.25, 0.25)
    objects = [{"label": "star", "box_yxyx": list(box)}]
    examples, answers = [], []
    for name, label, score in (("a", "star", 0.5), ("b", "cat", 0.9)):
        references = {"task": "detect", "slice": "detect", "objects": objects}
        examples.append(Example(id=name, prefix="", pictures=(), references=references))
        found = FoundObject(label=label, box_yxyx=box, score=score)
        answers.append(Prediction(id=name, text="", objects=(found,)))
    measures = {one.name: one for one in score_scenes(examples, answers)}
    # Half of the stars are found: 51 of the 101 recalls, at precision 1 and, pooled, at 1 / 2.
    assert measures["detect_ap50"].value == pytest.approx(51 / 101)
    assert measures["detect_ap50_pooled"].value == pytest.approx(51 / 202)
    assert measures["detect_recall50"].value == measures["detect_precision50"].value == 0.5
    # Each picture counts as often as its weight says.
    assert measures["detect_precision50"].statistic(np.array([3, 1])) == 0.75
    assert measures["detect_recall50"].statistic(np.array([0, 2])) == 0.0
    assert measures["detect_ap50"].statistic(np.array([1, 0])) == pytest.approx(1.0)


def test_boxes_without_confidence_are_certain_and_an_object_is_found_once() -> None:
    box = (0.0, 0.0, 0.25, 0.25)
    example = _posed("detect", "detect star")
    sure, unsure = (FoundObject(label="star", box_yxyx=box, score=score) for score in (None, 0.9))
    measures = {one.name: one.value for one in score_scenes([example], [_said("", unsure, sure)])}
    # The certain box comes first and takes the star; the other one finds nothing.
    assert measures["detect_precision50"] == measures["detect_recall50"] == 0.5
    assert measures["detect_ap50"] == pytest.approx(51 / 101)


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
