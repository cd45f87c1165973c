"""Runs and files of results with faults that the program must say in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paligemma.errors import DataError
from paligemma.eval.outcomes import true_objects
from paligemma.example import Example, FoundObject, Prediction
from paligemma.jobs.run_folder import EXAMPLES, RunConfig, RunFolder
from paligemma.tasks.scenes.rows import ScenePicture

Run = Callable[..., Any]
BOX = [0.1, 0.2, 0.6, 0.7]


def scenes_run(folder: Path) -> Path:
    """A run of one drawn picture in which a cat was to be found, and was found beside its place."""
    example = Example(
        id="one",
        prefix="detect cat",
        pictures=(ScenePicture(index=0, seed=0, size_px=224),),
        references={
            "task": "detect",
            "slice": "detect",
            "objects": [{"label": "cat", "box_yxyx": BOX}],
        },
    )
    found = FoundObject(label="cat", box_yxyx=(0.3, 0.4, 0.8, 0.9), score=0.5)
    config = RunConfig(task="scenes", split="heldout", model="some/model")
    with RunFolder.create(folder, config, [example]) as opened:
        opened.append([Prediction(id="one", text="", objects=(found,))])
    return folder


@pytest.mark.parametrize("pictures", [[], None, ["x"], [{"index": 0}], [{"index": "0"}]], ids=str)
def test_a_run_that_names_no_drawn_picture_is_reported_without_pictures(
    paligemma: Run, tmp_path: Path, pictures: Any
) -> None:
    path = scenes_run(tmp_path / "run") / EXAMPLES
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pictures": pictures}) + "\n")
    done = paligemma("eval", "report", tmp_path / "run")
    assert done.status == 0
    assert "line 1 must name one picture by index, seed and size_px, got" in done.err


@pytest.mark.parametrize("box", ["a\nb", [0.1, "cat", 1, 1], [1, 2, 3], [[1], 2, 3, 4]], ids=str)
def test_references_that_no_scorer_reads_are_the_fault_of_the_run(
    paligemma: Run, tmp_path: Path, box: Any
) -> None:
    path = scenes_run(tmp_path / "run") / EXAMPLES
    row = json.loads(path.read_text())
    row["references"]["objects"][0]["box_yxyx"] = box
    path.write_text(json.dumps(row) + "\n")
    for words in (("report", tmp_path / "run"), ("compare", tmp_path / "run", tmp_path / "run")):
        done = paligemma("eval", *words)
        assert done.status == 2
        assert "references must be as scenes wrote them" in done.err


def test_boxes_that_only_the_page_reads_are_refused_in_a_sentence() -> None:
    row = {"label": "cat", "bbox": [1, 2, 3, 4]}
    for damaged in ([1, 2, 3], [[1], 2, 3, 4], "abcd", {"a": 1}):
        for rows in ([row | {"bbox": damaged}], [{"box_yxyx": damaged}], [{"vertices": damaged}]):
            with pytest.raises(DataError, match="must hold objects with boxes of four numbers"):
                true_objects({"objects": rows, "size_hw": [30, 40]})
