"""COCO's twelve figures, compared with pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError
from paligemma.metrics.detection import (
    FIGURES,
    coco_summary,
    detection_measures,
    from_coco,
    match_images,
)

VECTORS = [
    v
    for v in json.loads((Path(__file__).parent / "data/metric_vectors.json").read_text())["vectors"]
    if v["metric"] == "detection_map"
]
NAMES = {1: "cat", 2: "dog"}
BOX = [10.0, 10.0, 50.0, 50.0]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_the_twelve_figures_are_cocos(vector: dict[str, Any]) -> None:
    own = coco_summary(vector["predictions"], vector["references"])
    assert own == pytest.approx(vector["expected"], abs=1e-9)


def test_there_are_five_official_numbers() -> None:
    assert len(VECTORS) == 5


def _data(
    seed: int, *, num_images: int = 20, num_found: int = 20, decimals: int = 1
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Crowds, all sizes, equal confidences, more than ten of a class in an image, lone classes."""
    rng = np.random.default_rng(seed)
    objects: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, num_images + 1):
        num = int(rng.integers(0, 7))
        size = np.exp(rng.uniform(np.log(8), np.log(300), (num, 2)))
        true = np.concatenate([rng.integers(0, 300, (num, 2)), size], axis=1)
        labels = rng.integers(1, 4, num)
        for box, label in zip(true, labels, strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.4, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
        for _ in range(num_found):
            box, label = rng.uniform(5, 200, 4), int(rng.integers(1, 6))
            if num and rng.random() < 0.7:
                k = int(rng.integers(num))
                box = true[k] + rng.normal(0, 0.08, 4) * np.tile(true[k, 2:], 2)
                label = int(labels[k])
            score = float(np.round(rng.random(), decimals))
            row = {"image_id": image, "category_id": label, "bbox": box.tolist(), "score": score}
            results.append(row)
    return results, {
        "info": {},
        "images": [{"id": k} for k in range(1, num_images + 1)],
        "annotations": objects,
        # The last category has detections and no object.
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 5)],
    }


def _by_pycocotools(results: list[dict[str, Any]], dataset: dict[str, Any]) -> Any:
    coco_module = pytest.importorskip("pycocotools.coco")
    eval_module = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        found = truth.loadRes(copy.deepcopy(results))
        evaluation = eval_module.COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(
    ("seed", "num_found", "decimals"), [(0, 8, 1), (1, 20, 1), (2, 20, 9), (3, 130, 2), (4, 3, 0)]
)
def test_weights_of_one_are_pycocotools_to_the_last_bit(
    seed: int, num_found: int, decimals: int
) -> None:
    results, dataset = _data(seed, num_found=num_found, decimals=decimals)
    official = _by_pycocotools(results, dataset)
    own = coco_summary(results, dataset)
    assert 0.1 < own["AP50"] < 0.9
    assert list(own.values()) == official.stats.tolist()
    measures = {m.name: m for m in detection_measures(*from_coco(results, dataset), by_class=True)}
    assert [measures[f.name].value for f in FIGURES.values()] == official.stats.tolist()
    # [T, R, K, A, M] at area "all" and 100 detections.
    precision = official.eval["precision"][:, :, :, 0, 2]
    for k in range(3):
        assert measures[f"ap/class {k + 1}"].value == pytest.approx(precision[:, :, k].mean())
    assert "ap/class 4" not in measures


def test_an_image_of_weight_two_is_an_image_twice() -> None:
    results, dataset = _data(7, num_images=8, decimals=12)
    weights = np.array([2, 0, 1, 3, 1, 0, 1, 2])
    found, true, names = from_coco(results, dataset)
    copies = np.repeat(np.arange(8), weights)
    repeated = match_images([found[k] for k in copies], [true[k] for k in copies], names)
    weighted = match_images(found, true, names).summary(weights)
    assert weighted == pytest.approx(repeated.summary(), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_images_does_not_matter_and_figures_lie_between_none_and_one(seed: int) -> None:
    found, true, names = from_coco(*_data(seed, num_images=6, num_found=6, decimals=12))
    order = np.random.default_rng(seed).permutation(6)
    one = match_images(found, true, names).summary()
    other = match_images([found[k] for k in order], [true[k] for k in order], names).summary()
    assert one == pytest.approx(other, abs=1e-12)
    assert all(value == -1 or 0 <= value <= 1 for value in one.values())


def _objects(*boxes: list[float], **fields: Any) -> list[dict[str, Any]]:
    return [{"category_id": 1, "bbox": box, **fields} for box in boxes]


def _found(box: list[float] = BOX, **fields: Any) -> dict[str, Any]:
    return {"label": "cat", "bbox": box, "score": 0.5, **fields}


def test_true_boxes_score_one_and_empty_area_ranges_are_left_out() -> None:
    figures = {m.name: m.value for m in detection_measures([[_found()]], [_objects(BOX)], NAMES)}
    assert figures == pytest.approx(
        {
            **dict.fromkeys(("ap", "ap50", "ap75", "ap_medium", "ar1", "ar10", "ar100"), 1.0),
            "ar_medium": 1.0,
            "unknown": 0.0,
        }
    )


def test_unknown_labels_are_counted_apart_and_change_nothing_else() -> None:
    rows = [_found(), _found(label="wolf", score=0.9)]
    figures = {m.name: m.value for m in detection_measures([rows], [_objects(BOX)], NAMES)}
    assert figures["ap"] == pytest.approx(1.0)
    assert figures["unknown"] == 0.5


def test_a_box_without_area_finds_nothing_and_counts() -> None:
    for box in ([10.0, 10.0, 0.0, 50.0], [60.0, 60.0, -50.0, -50.0]):
        rows = [_found(box, score=0.9), _found()]
        figures = {m.name: m.value for m in detection_measures([rows], [_objects(BOX)], NAMES)}
        assert figures["ap"] == pytest.approx(0.5)


def test_no_detection_at_all_scores_zero() -> None:
    figures = {m.name: m.value for m in detection_measures([[]], [_objects(BOX)], NAMES)}
    assert figures["ap"] == figures["ar100"] == 0.0
    assert "unknown" not in figures


def test_a_class_that_a_resample_lacks_is_left_out_and_without_any_object_it_is_undefined() -> None:
    true = [_objects(BOX), [{"category_id": 2, "bbox": BOX}]]
    ap = detection_measures([[_found()], []], true, NAMES)[0]
    assert ap.value == pytest.approx(0.5)
    assert ap.statistic(np.array([2, 0])) == pytest.approx(1.0)
    assert np.isnan(ap.statistic(np.array([0, 0])))
    low, high = ap.interval()
    assert low == pytest.approx(0.0)
    assert high == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("found", "true", "message"),
    [
        ([[_found(score=float("nan"))]], [_objects(BOX)], '"score" .* finite number, got nan'),
        ([[_found(score=None)]], [_objects(BOX)], "got None in image 0"),
        ([[_found([1.0, 2.0, 3.0])]], [_objects(BOX)], '"bbox" .* 4 finite numbers'),
        ([[{"bbox": BOX, "score": 1}]], [_objects(BOX)], '"category_id" or "label"'),
        ([[]], [_objects(BOX, category_id=9)], "one of the categories"),
        ([[]], [_objects([5.0, 5.0, -1.0, 2.0])], "corners must be turned into sizes"),
        ([[]], [_objects(BOX, area=float("inf"))], '"area" .* finite'),
        ([[]], [_objects(BOX, iscrowd=1)], "objects to find"),
        ([[]], [[]], "objects to find"),
        ([], [_objects(BOX)], "lists of one length"),
    ],
)
def test_malformed_rows_are_named(
    found: list[list[dict[str, Any]]], true: list[list[dict[str, Any]]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        detection_measures(found, true, NAMES)


def test_a_result_of_a_foreign_image_is_refused() -> None:
    _, dataset = _data(0)
    with pytest.raises(DataError, match="image 999"):
        coco_summary([{**_found(), "image_id": 999}], dataset)
