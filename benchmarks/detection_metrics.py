"""COCO's twelve figures by this package and by pycocotools, on the same made-up detections.

    python benchmarks/detection_metrics.py --images 5000 --detections 100

The peer's time begins after its index and results are built; ours holds everything, from rows of
dictionaries to figures. Both must agree to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.metrics.detection import coco_summary, detection_measures, from_coco, match_images
from paligemma.metrics.interval import resamples


def make_data(
    num_images: int, num_detections: int, num_classes: int, *, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results and ground truth with about seven objects an image, as in COCO; half of the
    detections are near an object."""
    rng = np.random.default_rng(seed)
    objects: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def boxes(num: int) -> np.ndarray:
        size = np.exp(rng.uniform(np.log(8), np.log(300), (num, 2)))
        return np.concatenate([rng.uniform(0, 400, (num, 2)), size], axis=1)

    for image in range(1, num_images + 1):
        present = rng.integers(1, num_classes + 1, 3)
        num = int(rng.poisson(7))
        true, names = boxes(num), rng.choice(present, num)
        for box, name in zip(true, names, strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": int(name),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * 0.7),
                    "iscrowd": int(rng.random() < 0.02),
                }
            )
        found, labels = boxes(num_detections), rng.choice(present, num_detections)
        if num:
            near = rng.random(num_detections) < 0.5
            target = rng.integers(0, num, near.sum())
            noise = rng.normal(0, 0.1, (near.sum(), 4)) * np.tile(true[target, 2:], 2)
            found[near], labels[near] = true[target] + noise, names[target]
        for box, name, score in zip(found, labels, rng.random(num_detections), strict=True):
            row = {"image_id": image, "category_id": int(name), "bbox": box.tolist()}
            results.append({**row, "score": float(np.round(score, 4))})
    return results, {
        "info": {},
        "images": [{"id": k + 1} for k in range(num_images)],
        "annotations": objects,
        "categories": [{"id": k + 1, "name": f"class {k + 1}"} for k in range(num_classes)],
    }


def run_peer(results: list[dict[str, Any]], dataset: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Figures and seconds of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        found = truth.loadRes([dict(row) for row in results])
        begin = time.perf_counter()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="in each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--resamples", type=int, default=20, help="of the bootstrap, timed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results, dataset = make_data(args.images, args.detections, args.classes)
    begin = time.perf_counter()
    own = coco_summary(results, dataset)
    seconds = {"ours": time.perf_counter() - begin}
    peer, seconds["pycocotools"] = run_peer(results, dataset)
    matches = match_images(*from_coco(results, dataset))
    weights = list(resamples(np.arange(args.images), args.resamples))
    begin = time.perf_counter()
    for one in weights:
        matches.summary(one)
    seconds["one resample of all twelve"] = (time.perf_counter() - begin) / args.resamples
    headline = detection_measures(*from_coco(results, dataset))[0]
    begin = time.perf_counter()
    for one in weights:
        headline.statistic(one)
    seconds["one resample of AP"] = (time.perf_counter() - begin) / args.resamples
    print(f"{len(results)} detections, {len(dataset['annotations'])} objects")
    for name, value in seconds.items():
        print(f"{name:>28} {value:8.3f} s")
    print(f"{'pycocotools / ours':>28} {seconds['pycocotools'] / seconds['ours']:8.1f}")
    is_same = bool((np.array(list(own.values())) == peer).all())
    print(f"{'same to the last bit':>28} {is_same!s:>8}")
    if args.json:
        args.json.write_text(json.dumps({"seconds": seconds, "figures": own, "same": is_same}))


if __name__ == "__main__":
    main()
