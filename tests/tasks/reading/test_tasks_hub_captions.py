"""Parquet copies of captions, referring expressions and tables, against the official files."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_files import (
    Case,
    cell,
    pictures,
    read,
    require_same,
    require_sentences,
    with_copies,
    write_copy,
)
from task_files import write_csv, write_json, write_json_lines, write_picture, write_text

from paligemma.errors import DataError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.outputs.boxes import encode_boxes, format_loc
from paligemma.tasks.reading.languages import XM3600_LANGUAGES

SAID = [["A red cat sits.", "One cat."], ["A blue dog runs.", "One dog."], ["A hen.", "Hens eat."]]
CAPTIONS = ("A red cat sits.", "A blue cow.", "")


def coco_names(num: int = 3) -> list[str]:
    return [f"COCO_val2014_{k:012d}.jpg" for k in range(num)]


def coco_official(data: Path) -> list[Path]:
    rows = [
        {
            "filepath": "val2014",
            "filename": name,
            "cocoid": k,
            "split": "val",
            "sentences": [{"raw": text} for text in texts],
        }
        for k, (name, texts) in enumerate(zip(coco_names(), SAID, strict=True))
    ]
    other = {**rows[0], "cocoid": 9, "split": "test"}
    write_json(data / "dataset_coco.json", {"images": [*rows, other]})
    return pictures(data / "val2014", *coco_names())


def coco_copy(data: Path, files: list[Path]) -> None:
    """All splits in one file, told apart by a column."""
    rows = [
        {"image": cell(file), "sentences_raw": texts, "split": "val", "cocoid": k}
        for k, (file, texts) in enumerate(zip(files, SAID, strict=True))
    ]
    write_copy(data / "data.parquet", [*rows, {**rows[0], "split": "test", "cocoid": 9}])


def coco_copy_of_sentences(data: Path, files: list[Path]) -> None:
    """A row a caption, as an object."""
    rows = [
        {"image": cell(file), "sentences": {"raw": text, "sentid": 1}, "cocoid": k}
        for k, (file, texts) in enumerate(zip(files, SAID, strict=True))
        for text in texts
    ]
    write_copy(data / "data" / "validation-00000-of-00001.parquet", rows)


def coco_copy_of_cocos_split(data: Path, files: list[Path]) -> None:
    """COCO's own val, with the file of Karpathy's split beside it."""
    rows = [
        {"question_id": file.name, "image": cell(file), "answer": texts, "id": 700 + k}
        for k, (file, texts) in enumerate(zip(files, SAID, strict=True))
    ]
    rows.append({**rows[0], "question_id": "COCO_val2014_000000000009.jpg"})
    write_copy(data / "data" / "val-00000-of-00001.parquet", rows)
    coco_official(data)


def nocaps_official(data: Path) -> list[Path]:
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(3)]
    captions = [{"image_id": k, "caption": text} for k, texts in enumerate(SAID) for text in texts]
    table = {"images": images, "annotations": captions}
    write_json(data / "nocaps_val_4500_captions.json", table)
    return pictures(data / "validation", "0.jpg", "1.jpg", "2.jpg")


def nocaps_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {
            "image": cell(file),
            "image_file_name": file.name,
            "image_id": k,
            "annotations_ids": [1, 2],
            "annotations_captions": texts,
        }
        for k, (file, texts) in enumerate(zip(files, SAID, strict=True))
    ]
    write_copy(data / "data" / "validation-00000-of-00001.parquet", rows)


def textcaps_official(data: Path) -> list[Path]:
    rows = [
        {"image_id": f"i{k}", "image_name": f"i{k}", "caption_str": text}
        for k, texts in enumerate(SAID)
        for text in texts
    ]
    write_json(data / "TextCaps_0.1_val.json", {"data": rows})
    return pictures(data / "train_images", "i0.jpg", "i1.jpg", "i2.jpg")


def textcaps_copy(data: Path, files: list[Path]) -> None:
    rows = [
        {"question_id": k, "image": cell(file), "image_id": file.stem, "caption_str": texts}
        for k, (file, texts) in enumerate(zip(files, SAID, strict=True))
    ]
    write_copy(data / "data" / "val-00000-of-00001.parquet", rows)


def xm3600_official(data: Path) -> list[Path]:
    rows = [
        {
            "image/key": f"k{k}",
            **{
                language: {
                    "caption": [f"{language} {texts[0]}"],
                    "caption/tokenized": [f"{language} {k} {texts[0]}"],
                }
                for language in XM3600_LANGUAGES
            },
        }
        for k, texts in enumerate(SAID[:2])
    ]
    write_json_lines(data / "captions.jsonl", rows)
    return pictures(data / "images", "k0.jpg", "k1.jpg")


def xm3600_copy(data: Path, files: list[Path]) -> None:
    for language in XM3600_LANGUAGES:
        rows = [
            {
                "image_id": file.stem,
                "image_locale": "en",
                "captions": [f"{language} {SAID[k][0]}"],
                "captions_tokenized": [f"{language} {k} {SAID[k][0]}"],
                "captions_tokenized_lowercase": [""],
                "image": cell(file),
            }
            for k, file in enumerate(files)
        ]
        write_copy(data / "data" / f"{language}-00000-of-00001.parquet", rows)


def widgetcap_official(data: Path) -> list[Path]:
    """Two widgets of two screens of 54 x 96 pixels, on a canvas 1440 wide and 2560 high."""
    for screen in ("7", "8"):
        button = {"bounds": [720, 640, 1440, 1280], "children": []}
        root = {"bounds": [0, 0, 1440, 2560], "children": [button]}
        write_json(data / "combined" / f"{screen}.json", {"activity": {"root": root}})
    rows = [["7", "0.0", "go back|return to menu"], ["8", "0.0", "open shop|see a shop"]]
    write_csv(data / "widget_captions.csv", ["screenId", "nodeId", "captions"], rows)
    write_text(data / "split" / "dev.txt", "7\n8\n")
    return [write_picture(data / "combined" / f"{screen}.jpg", size_wh=(54, 96)) for screen in "78"]


def widgetcap_copy(data: Path, files: list[Path]) -> None:
    captions = [["go back", "return to menu"], ["open shop", "see a shop"]]
    rows = [
        {
            "screenId": int(file.stem),
            "captions": texts,
            "bbox": [0.5, 0.25, 1.0, 0.5],
            "file_name": file.name,
            "image": cell(file),
        }
        for file, texts in zip(files, captions, strict=True)
    ]
    write_copy(data / "data" / "val-00000-of-00001.parquet", rows)


BOXES = [[4.0, 2.0, 20.0, 10.0], [0.0, 0.0, 8.0, 16.0]]


def polygon(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def refcoco_official(data: Path) -> list[Path]:
    refs = [
        {
            "ref_id": k,
            "ann_id": 50 + k,
            "image_id": k,
            "split": "testA",
            "sentences": [{"sent_id": n, "sent": f"{k} {n}"} for n in range(2 - k)],
        }
        for k in range(2)
    ]
    for name in ("refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p"):
        (data / name).parent.mkdir(parents=True)
        split = "test" if "umd" in name else "testA"
        (data / name).write_bytes(pickle.dumps([{**ref, "split": split} for ref in refs]))
    images = [{"id": k, "file_name": f"{k:012d}.jpg", "width": 30, "height": 20} for k in range(2)]
    annotations = [
        {"id": 50 + k, "image_id": k, "bbox": box, "segmentation": [polygon(*box)]}
        for k, box in enumerate(BOXES)
    ]
    table = {"images": images, "annotations": annotations}
    write_json(data / "instances_train2017.json", table)
    return [write_picture(data / "train2017" / f"{k:012d}.jpg", size_wh=(30, 20)) for k in range(2)]


def refcoco_copy(data: Path, files: list[Path]) -> None:
    """A row an object, with one polygon as a flat list."""
    rows = [
        {
            "question_id": str(50 + k),
            "image": cell(file),
            "question": "Please describe this region.",
            "answer": [f"{k} {n}" for n in range(2 - k)],
            "segmentation": polygon(*BOXES[k]),
            "bbox": BOXES[k],
            "iscrowd": 0,
            "file_name": f"COCO_train2014_{k:012d}_{k}.jpg",
        }
        for k, file in enumerate(files)
    ]
    for part in ("testA", "test"):
        write_copy(data / "data" / f"{part}-00000-of-00001.parquet", rows)


def referred(example: Example, text: str) -> Prediction:
    if text != "right":
        return Prediction(id=example.id, text=text)
    box = example.references["box_yxyx"]
    spelt = format_loc(encode_boxes(box).tolist()) + "".join(f"<seg{n:03d}>" for n in range(16))
    found = FoundObject(label="", box_yxyx=tuple(box), mask=example.references["mask"])
    return Prediction(id=example.id, text=spelt, objects=(found,))


STRUCTURE = ["<tbody>", "<tr>", "<td>", "</td>", "<td", ' colspan="2"', ">", "</td>", "</tr>"]
STRUCTURE += ["</tbody>"]
TABLE = '<table><tbody><tr><td>ab</td><td colspan="2"></td></tr></tbody></table>'


def pubtabnet_official(data: Path, split: str = "val") -> list[Path]:
    cells = [{"tokens": ["a", "b"], "bbox": [0, 0, 6, 8]}, {"tokens": []}]
    html = {"structure": {"tokens": STRUCTURE}, "cells": cells}
    rows = [{"filename": f"{k}.png", "split": split, "imgid": k, "html": html} for k in range(2)]
    write_json_lines(data / "PubTabNet_2.0.0.jsonl", rows)
    return pictures(data / split, "0.png", "1.png")


def pubtabnet_train(data: Path) -> list[Path]:
    return pubtabnet_official(data, "train")


def otsl_rows(files: list[Path]) -> list[dict[str, Any]]:
    """Cells by rows; an empty one has a box without a meaning."""
    cells = [[{"tokens": ["a", "b"], "bbox": [0, 0, 6, 8]}, {"tokens": [], "bbox": [0, 0, 0, 0]}]]
    return [
        {
            "imgid": k,
            "otsl": ["fcel", "ecel", "nl"],
            "html": STRUCTURE,
            "html_restored": STRUCTURE,
            "cols": 2,
            "rows": 1,
            "cells": cells,
            "image": cell(file),
            "filename": file.name,
        }
        for k, file in enumerate(files)
    ]


def pubtabnet_copy(data: Path, files: list[Path]) -> None:
    write_copy(data / "data" / "val-00000-of-00001.parquet", otsl_rows(files))
    write_copy(data / "data" / "train-00000-of-00001.parquet", otsl_rows(files))


def fintabnet_official(data: Path) -> list[Path]:
    """Pages of 12 x 8 points at 72 pixels an inch that are tables."""
    cells = [{"tokens": ["a", "b"], "bbox": [0, 0, 6, 8]}, {"tokens": []}]
    html = {"structure": {"tokens": STRUCTURE}, "cells": cells}
    rows = [
        {
            "filename": f"A/{k}.pdf",
            "split": "test",
            "table_id": k,
            "bbox": [0, 0, 12, 8],
            "html": html,
        }
        for k in range(2)
    ]
    write_json_lines(data / "FinTabNet_1.0.0_cell_test.jsonl", rows)
    write_json(data / "fintabnet-format.json", {"page_dpi": 72})
    files = [data / "pages" / "A" / f"{k}.png" for k in range(2)]
    return [write_picture(file, size_wh=(12, 8)) for file in files]


def fintabnet_copy(data: Path, files: list[Path]) -> None:
    write_copy(data / "data" / "test-00000-of-00001.parquet", otsl_rows(files))


SOME = ("prefix", "references", "targets", "slices")
CASES = (
    Case("coco-captions", "val", coco_official, coco_copy, CAPTIONS),
    Case("coco-captions", "val", coco_official, coco_copy_of_sentences, CAPTIONS),
    Case("coco-captions", "val", coco_official, coco_copy_of_cocos_split, CAPTIONS),
    Case("nocaps", "val", nocaps_official, nocaps_copy, CAPTIONS),
    Case("textcaps", "val", textcaps_official, textcaps_copy, CAPTIONS),
    Case("xm3600", "test", xm3600_official, xm3600_copy, ("en red cat", "x") * 36),
    Case("xm3600-tokenized", "test_en", xm3600_official, xm3600_copy, ("en 0 A red cat", "x")),
    Case(
        "widgetcap",
        "dev",
        widgetcap_official,
        widgetcap_copy,
        ("go back", "shop"),
        same=("prefix", "references", "targets", "mark_box_yxyx"),
    ),
    Case("pubtabnet", "val", pubtabnet_official, pubtabnet_copy, (TABLE, "<table></table>")),
    Case("pubtabnet", "train", pubtabnet_train, pubtabnet_copy, (TABLE, "<table></table>")),
    Case("fintabnet", "test", fintabnet_official, fintabnet_copy, (TABLE, "<table></table>")),
    *(
        replace(
            Case("refcoco", "testA", refcoco_official, refcoco_copy, ("right", "no", "right")),
            task=name,
            split=split,
            same=("prefix", "targets", "slices", "unit"),
            predict=referred,
        )
        for name, split in (("refcoco", "testA"), ("refcoco+", "testA"), ("refcocog", "test"))
    ),
)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.task}-{case.split}-{case.copy.__name__}"
)
def test_a_copy_gives_the_examples_and_figures_of_the_official_files(
    case: Case, tmp_path: Path
) -> None:
    require_same(case, tmp_path)


def test_every_copy_of_captions_objects_and_tables_has_a_case() -> None:
    assert {case.task for case in CASES} == with_copies("captions", "grounding", "structure")


def test_objects_of_a_copy_have_the_places_of_the_official_file(tmp_path: Path) -> None:
    refcoco_copy(tmp_path / "copy", refcoco_official(tmp_path / "official"))
    official = read("refcoco", tmp_path / "official", "testA")
    copied = read("refcoco", tmp_path / "copy", "testA")
    for theirs, ours in zip(official, copied, strict=True):
        assert ours.references["mask"] == theirs.references["mask"]
        assert ours.references["box_yxyx"] == pytest.approx(theirs.references["box_yxyx"])
    assert len({one.id for one in copied}) == 3


def test_a_copy_of_cocos_own_split_is_cut_to_karpathys_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coco_copy_of_cocos_split(tmp_path, coco_official(tmp_path / "official"))
    assert len(read("coco-captions", tmp_path, "val")) == 3
    assert not caplog.text
    table = json.loads((tmp_path / "dataset_coco.json").read_text())
    table["images"].append({**table["images"][0], "cocoid": 77})
    write_json(tmp_path / "dataset_coco.json", table)
    assert len(read("coco-captions", tmp_path, "val")) == 3
    assert "holds 3 of the 4 pictures of Karpathy's val" in caplog.text
    (tmp_path / "dataset_coco.json").unlink()
    assert len(read("coco-captions", tmp_path, "val")) == 4
    assert "its 4 pictures of val are taken as Karpathy's split" in caplog.text


@pytest.mark.parametrize(
    ("task", "split", "changed", "message"),
    [
        ("widgetcap", "dev", {"bbox": [0.5, 0.2, 1.4, 0.5]}, r"row 1: its widget must lie on the"),
        ("widgetcap", "dev", {"captions": [""]}, r"row 1 must have at least one caption"),
        ("nocaps", "val", {"annotations_captions": []}, r"row 1 must have at least one caption"),
        ("refcoco", "testA", {"segmentation": [1.0, 2.0]}, r"row 1: segmentation must be polygons"),
        ("pubtabnet", "val", {"cells": [[{"tokens": ["a"]}]]}, r"1 contents for 2 cells; kept"),
    ],
)
def test_a_wrong_row_of_a_copy_is_named(
    task: str,
    split: str,
    changed: dict[str, Any],
    message: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (file,) = pictures(tmp_path, "a.png")
    rows = {
        "widgetcap": {"screenId": 1, "captions": ["a"], "bbox": [0, 0, 1, 1]},
        "nocaps": {"image_id": 1, "annotations_captions": ["a"]},
        "refcoco": {"question_id": "1", "answer": ["a"], "segmentation": [], "bbox": BOXES[0]},
        "pubtabnet": {"imgid": 1, "html": STRUCTURE, "cells": []},
    }
    write_copy(tmp_path / "x.parquet", [{"image": cell(file), **rows[task], **changed}])
    if "kept" in message:
        assert len(read(task, tmp_path, split)) == 1
        assert message in caplog.text
        return
    with pytest.raises(DataError, match=message):
        read(task, tmp_path, split)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.task}-{case.split}-{case.copy.__name__}"
)
def test_whatever_a_column_holds_ends_in_a_sentence(case: Case, tmp_path: Path) -> None:
    require_sentences(case, tmp_path)
