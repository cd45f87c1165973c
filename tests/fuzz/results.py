"""Damaged and hostile files of data and results: rows, COCO JSON, predictions, vectors."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.damage import damaged_json, damaged_lines
from fuzz.folders import Files, changed, program
from fuzz.models import new_place
from PIL import Image

NAME = "results"
MAX_MB = 512

_LOC = "<loc0100><loc0200><loc0600><loc0700> cat"
_BOX = [0.1, 0.2, 0.6, 0.7]
_RLE = {"size": [30, 40], "counts": "PQ1"}


def _lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@cache
def files() -> dict[str, bytes]:
    """Sound files by their place."""
    detection = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "score": 0.5}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100}
    objects = [{"label": "cat", "box_yxyx": _BOX, "score": 0.5, "mask": _RLE}]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [annotation | {"iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}],
    }
    vectors = [
        {
            "id": "a",
            "metric": metric,
            "predictions": predictions,
            "references": references,
            "expected": {"accuracy": 1.0},
            "tolerance": 1e-6,
        }
        for metric, predictions, references in (
            ("vqa_accuracy", ["yes"], [["yes"] * 10]),
            ("cider", ["a cat", "a dog"], [["a cat"], ["one dog", "a dog"]]),
            ("anls", ["12"], [["12", "twelve"]]),
            ("coco_detection", [detection], {"annotations": coco["annotations"]}),
        )
    ]
    question = {"question_id": 1, "image_id": 1, "question": "what?"}
    answer = {"answer": "yes", "answer_confidence": "yes", "answer_id": 1}
    return {
        "own/test.jsonl": _lines(
            {"image": "a.png", "prefix": "detect cat", "suffix": _LOC},
            {"image": ["a.png"], "prefix": "answer en what?", "suffix": "yes"},
            {"image": "a.png", "prefix": "caption en", "suffix": "a cat"},
        ),
        "own.jsonl": _lines(
            {"id": "test/1", "text": _LOC, "objects": objects},
            {"id": "test/2", "text": "yes", "logprob": -0.5},
            {"id": "test/3", "text": "a cat", "error": None},
        ),
        "coco/val/_annotations.coco.json": _json(coco),
        "coco.jsonl": _lines({"id": "1", "text": "", "objects": objects}),
        "coco-list.json": _json([detection, detection]),
        "vqa/OpenEnded_mscoco_val2014_questions.json": _json({"questions": [question]}),
        "vqa/mscoco_val2014_annotations.json": _json(
            {"annotations": [question | {"answers": [answer] * 10, "answer_type": "other"}]}
        ),
        "vqa.json": _json([{"question_id": 1, "answer": "yes"}]),
        "vectors.json": _json({"vectors": vectors}),
    }


_WAYS = {
    "own": ("own/", "own.jsonl"),
    "own-detection": ("coco/", "coco.jsonl", "coco-list.json"),
    "okvqa": ("vqa/", "vqa.json"),
    "vectors": ("vectors.json",),
}


@cache
def folder() -> Path:
    """The sound files, and the picture."""
    place = new_place()
    for name, content in files().items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    for name in ("own/a.png", "coco/val/a.png"):
        Image.new("RGB", (40, 30)).save(place / name)
    return place


def make(rng: random.Random) -> tuple[str, tuple[str, str, Files]]:
    """A damaged file, and what reads it."""
    way = rng.choice(list(_WAYS))
    name = rng.choice([one for one in files() if one.startswith(_WAYS[way])])
    damage = damaged_lines if name.endswith(".jsonl") else damaged_json
    what, data = damage(files()[name], rng)
    said = name if "/" not in name else _WAYS[way][-1]
    return f"{way}, {name}: {what}", (way, said, {name: data})


def attempt(given: tuple[str, str, Files]) -> None:
    """Score predictions against data, or check vectors."""
    way, said, changes = given
    with changed(folder(), changes) as place:
        if way == "vectors":
            program("eval", "vectors", place / "vectors.json")
        else:
            data = place / {"own": "own", "own-detection": "coco", "okvqa": "vqa"}[way]
            split = {"own": "test", "own-detection": "val", "okvqa": "val"}[way]
            words = ("--task", way, "--data", data, "--split", split, "--html", place / "p.html")
            program("eval", "score", place / said, *words)
