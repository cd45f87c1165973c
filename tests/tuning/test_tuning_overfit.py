"""Rows learnt by heart: exact after saving, merging and loading, or a sentence and exit code 1."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma.cli import main
from paligemma.tuning import overfit as module

SEG = "".join(f"<seg{k:03d}>" for k in (3, 1, 17, 31, 0, 8, 8, 2, 30, 11, 12, 13, 14, 15, 16, 5))
SUFFIX = f"<loc0101><loc0200><loc0500><loc0611>{SEG} cup"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    folder = tmp_path / "masks"
    folder.mkdir()
    rows = []
    for k in range(3):
        Image.fromarray(np.full((40, 60, 3), 70 * k, np.uint8)).save(folder / f"{k}.png")
        rows.append({"image": f"{k}.png", "prefix": "segment cup", "suffix": SUFFIX})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(data: Path, model: Path, output: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(
            ["train", "--data", str(data), "--model", str(model), "--output", str(output),
             "--overfit", "1", "--quiet", *words]
        )  # fmt: skip
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("way", ["--lora", "--full"])
def test_a_mask_is_learnt_by_heart_and_the_run_ends_when_it_is(
    way: str, drawn_model: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(masks, drawn_model, tmp_path / "run", way, "--lr", "5e-3") == 0
    assert "every answer is exact after saving, merging and loading" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rows"]["learnt"] == report["rows"]["held_out"] == 1
    assert report["kept"]["step"] < report["steps"] == 300
    assert not [path for path in (tmp_path / "run").iterdir() if "merged" in path.name]


def test_a_row_that_is_not_learnt_is_named_with_both_texts_and_the_exit_code_is_1(
    drawn_model: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(masks, drawn_model, tmp_path / "run", "--steps", "1") == 1
    said = capsys.readouterr().err
    assert f"in the place of '{SUFFIX}" in said
    assert re.search(r"the model with the saved adapter answers \S+ \(.segment cup.\) with", said)


def test_the_merged_model_is_asked_too(
    drawn_model: Path, masks: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = module.merge_adapter

    def merge_another(result: Path, model: str, merged: Path) -> float:
        from paligemma.weights.save import convert

        convert(model, merged)
        return 0.0

    monkeypatch.setattr(module, "merge_adapter", merge_another)
    assert train(masks, drawn_model, tmp_path / "run", "--lr", "5e-3") == 1
    assert "the merged model answers" in capsys.readouterr().err
    assert real is not module.merge_adapter


def test_the_rows_are_the_same_ones_in_any_order() -> None:
    from paligemma.example import Example

    rows = [
        Example(id=f"row {k}", prefix="ocr", pictures=(), references=None, targets=("a", "b"))
        for k in range(20)
    ]
    chosen = module.chosen_rows(rows, 4)
    assert chosen == module.chosen_rows(rows[::-1], 4)
    assert len(chosen) == 4
    assert {one.targets for one in chosen} == {("a",)}
