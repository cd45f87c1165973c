"""Average precision, compared with COCO's own evaluation."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from paligemma.errors import DataError
from paligemma.metrics.grounding import COCO_THRESHOLDS, ImageBoxes, match_detections

LABELS = ("circle", "sign", "star")


def _random_image(rng: np.random.Generator, *, decimals: int = 1) -> ImageBoxes:
    """A few objects, some found well, some badly, some twice, some under another name."""
    num_true = int(rng.integers(0, 6))
    corner = rng.uniform(0, 60, (num_true, 2))
    truth = np.concatenate([corner, corner + rng.uniform(8, 40, (num_true, 2))], axis=1)
    names = rng.choice(LABELS, num_true).tolist()
    seen = rng.integers(0, num_true, size=int(rng.integers(0, 8))) if num_true else []
    boxes = [truth[k] + rng.uniform(-3.9, 3.9, 4) for k in seen] + [np.array([3.0, 3, 20, 30])]
    labels = [names[k] if rng.random() < 0.8 else str(rng.choice(LABELS)) for k in seen]
    # With one decimal ties occur, and their order has to be COCO's.
    scores = np.round(rng.random(len(boxes)), decimals)
    return ImageBoxes(
        boxes=np.array(boxes),
        labels=[*labels, "star"],
        scores=scores,
        true_boxes=truth,
        true_labels=names,
    )


def _xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _by_pycocotools(images: list[ImageBoxes]) -> tuple[np.ndarray, np.ndarray]:
    """AP[T] averaged over labels, and AP50 of each label."""
    coco_module = pytest.importorskip("pycocotools.coco")
    eval_module = pytest.importorskip("pycocotools.cocoeval")
    truth, found = [], []
    for image_id, image in enumerate(images, start=1):
        for box, name in zip(image.true_boxes, image.true_labels, strict=True):
            x, y, w, h = _xywh(box)
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image_id,
                    "category_id": LABELS.index(name) + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        for box, name, score in zip(image.boxes, image.labels, image.scores, strict=True):
            found.append(
                {
                    "image_id": image_id,
                    "category_id": LABELS.index(name) + 1,
                    "bbox": _xywh(box),
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": k + 1, "width": 100, "height": 100} for k in range(len(images))],
            "annotations": truth,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(LABELS)],
        }
        coco.createIndex()
        evaluation = eval_module.COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # [T, R, K, A, M] at area "all" and 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return precision.mean(axis=(1, 2)), precision[0].mean(axis=0)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [_random_image(rng) for _ in range(25)]
    matches = match_detections(images)
    mean, by_label = _by_pycocotools(images)
    assert 0.1 < mean[0] < 0.9
    np.testing.assert_allclose(matches.mean_average_precision(), mean, rtol=0, atol=1e-12)
    half = matches.at(0.5)
    own = [half.by_label[name].average_precision()[0] for name in LABELS]
    np.testing.assert_allclose(own, by_label, rtol=0, atol=1e-12)


def _one_image(**changes: object) -> ImageBoxes:
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    values: dict[str, object] = {
        "boxes": box,
        "labels": ["star"],
        "scores": np.array([0.5]),
        "true_boxes": box,
        "true_labels": ["star"],
    }
    return ImageBoxes(**{**values, **changes})  # type: ignore[arg-type]


def test_true_boxes_score_one_at_every_threshold() -> None:
    matches = match_detections([_one_image()])
    assert matches.thresholds == COCO_THRESHOLDS
    np.testing.assert_allclose(matches.mean_average_precision(), np.ones(10), atol=1e-12)


def test_a_box_under_another_name_is_no_hit_and_counts_only_in_the_pooled_ranking() -> None:
    good, other = _one_image(), _one_image(labels=["cat"], scores=np.array([0.9]))
    matches = match_detections([good, other]).at(0.5)
    assert matches.true_labels == ["star"]
    # Half of the stars are found: 51 of the 101 recalls, at precision 1 and, pooled, at 1 / 2.
    assert matches.mean_average_precision()[0] == pytest.approx(51 / 101)
    assert matches.pooled.average_precision()[0] == pytest.approx(51 / 202)


def test_an_object_is_found_once() -> None:
    twice = _one_image(
        boxes=np.tile([[0.0, 0, 10, 10]], (2, 1)), labels=["star"] * 2, scores=np.array([0.1, 0.9])
    )
    assert match_detections([twice]).pooled.is_hit[:, 0].tolist() == [True, False]


def test_iou_of_exactly_one_half_counts() -> None:
    half = _one_image(boxes=np.array([[0.0, 0.0, 10.0, 5.0]]))
    assert match_detections([half]).pooled.is_hit[0].tolist() == [True] + [False] * 9


def test_an_image_of_weight_two_is_an_image_twice() -> None:
    rng = np.random.default_rng(5)
    images = [_random_image(rng, decimals=9) for _ in range(6)]
    weights = np.array([2, 0, 1, 3, 1, 0])
    repeated = [image for image, times in zip(images, weights, strict=True) for _ in range(times)]
    weighted = match_detections(images).mean_average_precision(weights)
    plain = match_detections(repeated).mean_average_precision()
    np.testing.assert_allclose(weighted, plain, rtol=0, atol=1e-12)


def test_nothing_to_find_and_numbers_that_are_none_are_refused() -> None:
    empty = _one_image(true_boxes=np.zeros((0, 4)), true_labels=[])
    with pytest.raises(DataError, match="objects to find"):
        match_detections([empty]).mean_average_precision()
    with pytest.raises(DataError, match="finite"):
        _one_image(scores=np.array([np.nan]))
    with pytest.raises(DataError, match=r"\[N, 4\]"):
        _one_image(labels=["a", "b"])
