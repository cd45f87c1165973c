"""Damaged and hostile run folders: gone on with, reported, compared and calibrated."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import numpy as np
from fuzz.damage import damaged_json, damaged_lines
from fuzz.folders import Files, changed, program
from fuzz.models import new_place

from paligemma.example import Example, FoundObject, Prediction
from paligemma.jobs.run_folder import RunConfig, RunFolder, load_run
from paligemma.outputs.rle import encode_rle
from paligemma.tasks.catalog import tasks

NAME = "runs"
MAX_MB = 512

_WAYS = ("go on", "report", "report", "compare", "compare", "calibrate", "submission", "score")
_BOX = (0.1, 0.2, 0.6, 0.7)


@cache
def folders() -> dict[str, Path]:
    """A run of each kind of reference: answers, captions, boxes, own rows."""
    own = [
        {"task": "detect", "slice": "detect", "objects": [{"label": "cat", "box_yxyx": _BOX}]},
        {"task": "ocr", "slice": "ocr", "text": "stop"},
        {"task": "answer", "slice": "answer", "text": "yes"},
    ]
    mask = encode_rle(np.eye(8, dtype=bool))
    found_object = {"label": "cat", "box_yxyx": _BOX, "bbox": [1, 1, 4, 4], "area": 16, "id": 1}
    references: dict[str, list[object]] = {
        "vqav2": [{"answers": ["yes"] * 10, "answer_type": "yes/no"}],
        "coco-captions": [["a cat on a mat", "one cat"]],
        "refcoco": [{"box_yxyx": _BOX, "mask": mask}],
        "coco-detection": [
            {"objects": [{**found_object, "iscrowd": 0}], "classes": ["cat"], "size_hw": [48, 64]}
        ],
        "docvqa": [{"answers": ["12", "yes"]}],
        "gqa": ["yes"],
        "own": own,
        "scenes": own,
    }
    found = {}
    for name, kinds in references.items():
        examples = [
            Example(
                id=f"q{k}",
                prefix="detect cat" if "box" in str(kinds[k % len(kinds)]) else "answer en what?",
                pictures=(),
                references=kinds[k % len(kinds)],
                slices={"kind": "ab"[k % 2]},
            )
            for k in range(6)
        ]
        objects = (FoundObject(label="cat", box_yxyx=_BOX, score=0.5),)
        said = [
            Prediction(id=one.id, text="yes", logprob=-0.5, objects=objects) for one in examples
        ]
        config = RunConfig(
            task=name,
            split=tasks()[name].splits[0],
            model="some/model",
            settings={"model": "some/model", "num_beams": 1},
            sampling={"limit": 4, "seed": 0},
            command="paligemma eval",
            environment={"torch": "2"},
        )
        folder = found[name] = new_place() / "run"
        with RunFolder.create(folder, config, examples) as opened:
            opened.append(said)
    return found


def make(rng: random.Random) -> tuple[str, tuple[str, Files, str]]:
    """A run with a damaged file, and what is done with it."""
    task = rng.choice(list(folders()))
    folder = folders()[task]
    way = rng.choice(_WAYS if tasks()[task].files else _WAYS[:-1])  # drawn scenes take long
    said, files = [], {}
    names = ("run.json", "examples.jsonl", "examples.jsonl", "predictions.jsonl")
    for name in {rng.choice(names) for _ in range(rng.choice((1, 1, 2)))}:
        damage = damaged_json if name.endswith(".json") else damaged_lines
        what, files[name] = damage((folder / name).read_bytes(), rng)
        said.append(f"{name}: {what}")
    return f"{task}, {way}, {'; '.join(said)}", (task, files, way)


def attempt(given: tuple[str, Files, str]) -> None:
    """Do it; a run whose settings no longer hash to its key is refused."""
    task, files, way = given
    with changed(folders()[task], files) as folder:
        if way == "go on":
            sound = load_run(folders()[task])
            with RunFolder.create(folder, sound.config, sound.examples) as opened:
                opened.append([Prediction(id="q5", text="no")])
            load_run(folder)
        elif way == "compare":
            program("eval", "compare", folder, folders()[task], "--html", folder / "page.html")
        elif way == "score":
            program("eval", "score", folder / "predictions.jsonl", "--task", task)
        elif way == "submission":
            program("eval", "submission", folder, "--output", folder / "out.json")
        else:
            program("eval", way, folder)
