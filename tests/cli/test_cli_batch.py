"""`paligemma batch` with the embedded model: the labels are those of `paligemma detect`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from task_files import write_json_lines, write_pixels

from paligemma.cli import main
from paligemma.jobs.labelling.answering import ModelLabeller
from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.review.choice import chosen
from paligemma.review.decisions import Reviewed

DESK = Path(__file__).parents[2] / "examples" / "desk.png"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parts of the desk, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    desk = np.asarray(Image.open(DESK).convert("RGB"))
    for k in range(4):
        write_pixels(folder / f"{k}.png", desk[k * 8 : 400 + k * 8, k * 12 : 500 + k * 12])
    (folder / "bad.jpg").write_text("no picture")
    return folder


def batch(*words: object) -> str:
    result = CliRunner().invoke(main, ["batch", "--model", "tiny", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_folder_becomes_labels_coco_and_yolo(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    words = ["--input", pictures, "--output", out, "--task", "detect", "--labels", "star;heart"]
    files = ["--coco", tmp_path / "found.json", "--yolo", tmp_path / "yolo"]
    said = batch(*words, *files, "--part-rows", 3, "--batch-size", 2)
    assert "5 rows in" in said
    assert "4 labelled, 1 quarantined; 5 now" in said
    (bad,) = (out / "quarantine").iterdir()
    assert json.loads(bad.read_text())["image"] == "bad.jpg"

    lines = "".join(path.read_text() for path in sorted(out.glob("labels-*"))).splitlines()
    records = [json.loads(line) for line in lines]
    pg = PaliGemma.from_pretrained("tiny")
    for record in records:
        found = pg.detect(pictures / record["image"], ["star", "heart"])
        assert record["text"] == found.text
        assert [one["label"] for one in record["detections"]] == [one.label for one in found]
        assert (record["width"], record["height"]) == found.image_wh
        assert record["logprob"] < 0
        assert len(record["key"]) == 16
    assert any(record["detections"] for record in records)

    coco = json.loads((tmp_path / "found.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == [f"{k}.png" for k in range(4)]
    assert [one["name"] for one in coco["categories"]] == ["star", "heart"]
    num_valid = sum(one.get("valid", True) for r in records for one in r["detections"])
    assert len(coco["annotations"]) == num_valid
    yolo = [(tmp_path / "yolo" / "labels" / f"{k}.txt").read_text() for k in range(4)]
    assert sum(text.count("\n") for text in yolo) == num_valid

    assert "0 now" in batch(*words, "--part-rows", 3, "--batch-size", 2)


def test_masks_and_parquet_hold_what_the_lines_of_json_hold(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [
        {"image": f"{k % 2}.png", "thing": name} for k, name in enumerate(["star", "heart"] * 2)
    ]
    source = write_json_lines(pictures / "rows.jsonl", rows)
    asked = ["--input", source, "--prompt", "segment {thing}"]
    batch(*asked, "--output", tmp_path / "a")
    batch(*asked, "--output", tmp_path / "b", "--format", "parquet")
    one, two = (list(LabelFolder(tmp_path / name).records()) for name in "ab")
    without = [{k: v for k, v in row.items() if k != "key"} for row in one]
    assert [{k: v for k, v in row.items() if k != "key"} for row in two] == without
    masks = [found["mask"] for row in one for found in row["detections"] if "mask" in found]
    assert masks
    assert set(masks[0]) == {"size", "counts"}


def test_objects_without_a_mask_are_counted_once_a_run_beside_what_helps(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    box = {"label": "star", "score": 0.5, "box_yxyx": [0.1, 0.1, 0.5, 0.5]}
    mask = {"size": [4, 4], "counts": "0"}
    record = {"text": "", "width": 4, "height": 4, "detections": [box, {**box, "mask": mask}]}
    monkeypatch.setattr(
        ModelLabeller, "answer", lambda self, examples, prepared: [dict(record) for _ in examples]
    )
    words = ["--input", pictures / "*.png", "--task", "segment", "--part-rows", 2]
    said = batch(*words, "--labels", "star", "--output", tmp_path / "one")
    assert said.count("without a mask") == 1
    assert "4 of 8 objects came without a mask; --constrain" in said
    log = list(LabelFolder(tmp_path / "one").log())
    assert [(one["objects"], one["without_mask"]) for one in log[1:]] == [(4, 2)] * 2
    said = batch(*words, "--labels", "star;heart", "--output", tmp_path / "two")
    assert "4 of 8 objects came without a mask; ask for one label at a time" in said
    assert caplog.records == []


def test_exports_replace_those_of_the_same_labelling_and_no_file_of_others(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["--input", pictures / "0.png", "--output", tmp_path / "labels", "--task", "detect"]
    asked += ["--labels", "star"]
    coco, yolo = tmp_path / "new" / "found.json", tmp_path / "yolo"
    batch(*asked, "--coco", coco, "--yolo", yolo)
    whole = coco.read_text()
    batch(*asked, "--coco", coco, "--yolo", yolo)
    assert coco.read_text() == whole

    def refused(*words: object) -> str:
        result = CliRunner().invoke(main, ["batch", "--model", "tiny", *map(str, words)])
        assert result.exit_code == 2
        assert "a file that is there is kept" in result.output
        return result.output

    other = [*asked[:2], "--output", tmp_path / "other", *asked[4:]]
    assert str(coco) in refused(*other, "--coco", coco)
    assert not (tmp_path / "other").exists()  # refused before the work
    coco.write_text("mine")
    refused(*asked, "--coco", coco)
    batch(*asked, "--coco", coco, "--overwrite")
    assert coco.read_text() == whole

    refused(*other, "--yolo", yolo)
    (yolo / "data.yaml").unlink()
    assert str(yolo / "labels" / "0.txt") in refused(*other, "--yolo", yolo)
    (yolo / "labels" / "cat.txt").write_text("3 0.5 0.5 0.5 0.5\n")
    batch(*other, "--yolo", yolo, "--overwrite")
    assert (yolo / "labels" / "cat.txt").exists()
    (record,) = caplog.records
    assert "1 label files of other pictures, such as" in record.getMessage()
    stamp = (yolo / "data.yaml").stat().st_mtime_ns + 1
    os.utime(yolo / "labels" / "0.txt", ns=(stamp, stamp))  # as where somebody mended it
    assert str(yolo / "labels" / "0.txt") in refused(*other, "--yolo", yolo)


def test_accepted_labels_are_learnt_from_with_the_boxes_that_the_model_wrote(
    pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    words = ["--input", pictures / "0.png", "--output", out, "--task", "detect"]
    batch(*words, "--labels", "star;heart")
    (record,) = chosen(LabelFolder(out).records(), 1)
    reviewed = Reviewed(tmp_path / "reviewed", out, [record])
    objects = [{name: one[name] for name in ("label", "box_yxyx")} for one in record["detections"]]
    assert objects
    reviewed.decide(0, {"state": "accepted", "objects": objects})
    reviewed.write_rows()
    (row,) = map(json.loads, (tmp_path / "reviewed" / "train.jsonl").read_text().splitlines())
    assert (row["prefix"], row["suffix"]) == ("detect star ; heart", record["text"])
    before, after = (
        np.asarray(Image.open(path).convert("RGB"))
        for path in (pictures / "0.png", tmp_path / "reviewed" / row["image"])
    )
    assert (before == after).all()
    result = CliRunner().invoke(main, ["data", "check", str(tmp_path / "reviewed")])
    assert result.exit_code == 0, result.output
    assert "of which 1 can be learnt from" in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "state --task"),
        (["--task", "detect"], "--task detect needs --labels"),
        (["--task", "caption", "--labels", "cat"], "--task caption takes no --labels"),
        (["--prompt", "caption en", "--question", "why?"], "--prompt takes no --question"),
        (["--task", "caption", "--coco", "c.json"], "--coco and --yolo hold objects"),
        (["--prompt", "detect cat", "--in-words", "--yolo", "y"], "--coco and --yolo hold objects"),
    ],
)
def test_one_thing_is_asked(words: list[str], said: str, tmp_path: Path) -> None:
    folder = ["--input", str(tmp_path), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["batch", *folder, *words], catch_exceptions=False)
    assert result.exit_code == 2
    assert said in result.output


def test_a_batch_without_any_label_fails(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_text("no picture")
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--task", "read"]
    result = CliRunner().invoke(main, ["batch", "--model", "tiny", *words])
    assert "0 labelled, 1 quarantined" in result.output
    assert result.exit_code == 2
    assert "no row was labelled" in result.output


@pytest.mark.parametrize("asked", [("--task", "read"), ("--prompt", "caption de")])
def test_a_language_beside_a_task_without_one_is_refused(
    pictures: Path, tmp_path: Path, asked: tuple[str, str]
) -> None:
    words = ["--input", str(pictures), "--output", str(tmp_path / "out"), *asked, "--lang", "de"]
    result = CliRunner().invoke(main, ["batch", "--model", "tiny", *words])
    assert result.exit_code == 2
    assert "--lang is of captions and answers" in result.output
