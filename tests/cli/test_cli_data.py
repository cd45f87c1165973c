"""`paligemma data`: labelled pictures checked, converted and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from labelled_set import drawn_set, picture, write_coco
from PIL import Image
from task_files import write_json, write_json_lines, write_pixels

PREFIX = "detect cup"
BOX = "<loc0100><loc0100><loc0500><loc0600>"


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[..., Path]:
    """rows_of({...}, ...) -> a folder whose train.jsonl has these changes of one good row each."""

    def write(*changes: dict[str, Any], valid: int = 0) -> Path:
        folder = tmp_path / "cards"
        for k in range(len(changes) + valid):
            write_pixels(folder / f"{k}.png", picture(k))
        good = {"prefix": PREFIX, "suffix": f"{BOX} cup"}
        rows = [{"image": f"{k}.png", **good, **change} for k, change in enumerate(changes)]
        write_json_lines(folder / "train.jsonl", rows)
        if valid:
            held = [{"image": f"{len(changes) + k}.png", **good} for k in range(valid)]
            write_json_lines(folder / "valid.jsonl", held)
        return folder

    return write


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        ({"image": "gone.png"}, "picture", "gone.png"),
        ({"suffix": "<loc0500><loc0100><loc0100><loc0600> cup"}, "box swapped", "(500, 100, 100"),
        ({"suffix": "<loc0100><loc0100><loc0100><loc0600> cup"}, "box empty", "remove it"),
        ({"suffix": f"{BOX} mug"}, "label not in prefix", "'mug'"),
        ({"suffix": " ; ".join([f"{BOX} cup"] * 90)}, "too long", "512 tokens"),
        ({"suffix": "<loc0100><loc0100><loc050><loc0600> cup"}, "damaged token", "'<loc050>'"),
        ({"suffix": "<loc0100><loc1024><loc0500><loc0600> cup"}, "damaged token", "'<loc1024>'"),
        ({"suffix": f"<loc0100> {BOX} cup"}, "damaged answer", "between them"),
        ({"prefix": "caption  en", "suffix": "a cup"}, "spaces", "two spaces"),
        ({"prefix": "caption en", "suffix": "a cup "}, "spaces", "at its ends"),
        ({"suffix": 7}, "row", "text"),
    ],
)
def test_each_rule_names_file_row_value_and_remedy(
    change: dict[str, Any], rule: str, words: str, rows_of: Callable[..., Path], paligemma: Run
) -> None:
    folder = rows_of({}, change, {})
    done = paligemma("data", "check", folder)
    is_warning = rule == "spaces"
    assert done.status == (0 if is_warning else 1), done.err
    (line,) = [one for one in done.out.splitlines() if one.startswith(("  error", "  warning"))]
    assert line.startswith(f"  {'warning' if is_warning else 'error'}, {rule}: ")
    assert f"{folder / 'train.jsonl'}, row 2" in line
    assert words in line
    assert f"rows: 3, of which {3 if is_warning else 2} can be learnt from" in done.out
    assert f"rules: {rule} 1" in done.out


def test_a_line_that_is_no_json_loses_no_other(
    rows_of: Callable[..., Path], paligemma: Run
) -> None:
    folder = rows_of({}, {})
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"image": \n{"image": "0.png", "prefix": "ocr", "suffix": "x"}\n')
    done = paligemma("data", "check", folder)
    assert done.status == 1
    assert "row 3 must be JSON" in done.out
    assert "rows: 4, of which 3 can be learnt from" in done.out


def test_a_picture_of_two_splits_is_an_error_and_is_not_measured_with(
    rows_of: Callable[..., Path], paligemma: Run, tmp_path: Path, tiny_dir: Path
) -> None:
    folder = rows_of({}, {}, valid=2)
    write_pixels(folder / "copy.bmp", picture(1))
    with (folder / "valid.jsonl").open("a") as file:
        file.write(json.dumps({"image": "copy.bmp", "prefix": "ocr", "suffix": "x"}) + "\n")
    done = paligemma("data", "check", folder)
    assert done.status == 1
    assert "duplicate across splits: " in done.out
    assert "valid.jsonl, row 3" in done.out
    assert "train.jsonl, row 2" in done.out
    run = paligemma(
        "train", "--data", folder, "--output", tmp_path / "run", "--steps", 1, "--batch-size", 1,
        "--quiet",
    )  # fmt: skip
    assert run.status == 0, run.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rows"] == {"learnt": 2, "held_out": 2, "skipped": 1}
    assert "valid.jsonl, row 3" in report["skipped"][0]


@pytest.mark.parametrize(
    ("stated_wh", "orientation", "rule", "status"),
    [
        ((200, 120), 1, None, 0),
        ((120, 200), 6, None, 0),
        ((200, 120), 6, "exif turn", 0),
        ((120, 200), 1, "size", 1),
        ((400, 240), 1, "size", 0),
    ],
)
def test_sizes_of_labels_and_exif_turns_are_compared(
    stated_wh: tuple[int, int],
    orientation: int,
    rule: str | None,
    status: int,
    tmp_path: Path,
    paligemma: Run,
) -> None:
    write_pixels(tmp_path / "set" / "a.png", picture(0), orientation=orientation)
    width, height = stated_wh
    write_json(
        tmp_path / "set" / "train.json",
        {
            "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 50, 50]}],
            "categories": [{"id": 1, "name": "cup"}],
        },
    )
    done = paligemma("data", "check", tmp_path / "set", "--json")
    assert done.status == status, done.out
    (split,) = done.json["splits"]
    assert [one["rule"] for one in split["findings"]] == ([] if rule is None else [rule])
    assert split["boxes_a_picture"] == {"1": 1}


def test_a_labelled_folder_is_trained_and_measured_by_its_name_alone(
    tmp_path: Path, paligemma: Run
) -> None:
    write_coco(tmp_path / "set", "train", drawn_set(4))
    write_coco(tmp_path / "set", "valid", drawn_set(2, seed=1))
    done = paligemma(
        "train", "--data", tmp_path / "set", "--output", tmp_path / "run", "--steps", 1,
        "--batch-size", 2, "--quiet",
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rows"] == {"learnt": 4, "held_out": 2, "skipped": 0}
    done = paligemma("eval", "own", "--data", tmp_path / "set", "--output", tmp_path / "eval")
    assert done.status == 0, done.err
    assert "detect_ap50" in done.out


def test_check_of_what_is_no_set_is_refused(tmp_path: Path, paligemma: Run) -> None:
    np.save(tmp_path / "a.npy", np.zeros(1))
    done = paligemma("data", "check", tmp_path)
    assert done.status == 2
    assert "JSON lines: train.jsonl" in done.err
    assert paligemma("data", "check", tmp_path / "none").status == 2


def test_convert_writes_a_new_folder_and_names_what_it_leaves_out(
    tmp_path: Path, paligemma: Run
) -> None:
    write_coco(tmp_path / "set", "train", drawn_set(3))
    words = ("data", "convert", tmp_path / "set", "--to", "yolo", "-o", tmp_path / "out")
    done = paligemma(*words)
    assert (done.status, done.out) == (0, f"wrote {tmp_path / 'out'}: 3 of train\n")
    again = paligemma(*words)
    assert again.status == 2
    assert "new folder" in again.err
    (tmp_path / "out" / "train" / "labels" / "train0.txt").write_text("9 1 1 1 1\n")
    done = paligemma("data", "convert", tmp_path / "out", "--to", "voc", "-o", tmp_path / "voc")
    assert done.status == 1
    assert "train0.txt, row 1" in done.err
    assert "2 of train; left out 1" in done.out


def test_show_draws_pictures_with_their_objects_and_replaces_nothing(
    tmp_path: Path, paligemma: Run
) -> None:
    write_coco(tmp_path / "set", "train", drawn_set(5))
    sheet = tmp_path / "sheet.png"
    done = paligemma("data", "show", tmp_path / "set", "-o", sheet)
    assert (done.status, done.out) == (0, f"wrote {sheet}: 5 pictures\n")
    with Image.open(sheet) as image:
        assert image.width > 4 * 448
        assert image.height > 2 * 448 * 120 / 200
    assert paligemma("data", "show", tmp_path / "set", "-o", sheet, "--number", 1).status == 0
    sheet.write_bytes(b"mine")
    done = paligemma("data", "show", tmp_path / "set", "-o", sheet)
    assert done.status == 2
    assert "--overwrite" in done.err
    assert sheet.read_bytes() == b"mine"
    assert paligemma("data", "show", tmp_path / "set", "-o", "x.png", "--split", "test").status == 2


def test_convert_decodes_codewords_by_the_codec_of_a_named_model(
    rows_of: Callable[..., Path], tmp_path: Path, paligemma: Run
) -> None:
    data = rows_of({"prefix": "segment cup", "suffix": BOX + "<seg005>" * 16 + " cup"})
    words = ("data", "convert", data, "--to", "jsonl", "-o")
    assert paligemma(*words, tmp_path / "plain").status == 0
    assert paligemma(*words, tmp_path / "masks", "--model", "tiny").status == 0
    plain, masks = (
        json.loads((tmp_path / name / "train.jsonl").read_text()) for name in ("plain", "masks")
    )
    assert "masks" not in plain
    assert masks["suffix"] == plain["suffix"]
    assert masks["masks"][0]["size"] == list(picture(0).shape[:2])
