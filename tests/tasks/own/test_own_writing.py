"""Sets that are written in another format and read again are the same sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelled_set import (
    SIZE_WH,
    drawn_set,
    picture,
    write_coco,
    write_labelme,
    write_voc,
    write_yolo,
)
from task_files import write_json, write_json_lines, write_pixels, write_text
from tiny_folder import EMBEDDED

from paligemma.errors import ConfigError, DataError
from paligemma.outputs.boxes import encode_boxes, format_detections
from paligemma.outputs.contours import fill_rings, one_ring, trace_rings
from paligemma.outputs.masks import mask_iou
from paligemma.outputs.rle import encode_rle
from paligemma.outputs.vqvae import load_mask_codec, mask_to_codes
from paligemma.tasks.own.files import recognise
from paligemma.tasks.own.labels import OwnExample
from paligemma.tasks.own.rows import TASKS
from paligemma.tasks.own.writing import WRITTEN, convert

(OWN,) = TASKS
SIZE_HW = (SIZE_WH[1], SIZE_WH[0])
SOURCES = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "labelme": write_labelme}


def read(folder: Path, split: str) -> list[OwnExample]:
    return list(OWN.read(folder, split))  # type: ignore[arg-type]


def assert_same(before: Path, after: Path, split: str) -> None:
    """Within one bin of coordinates and at a mask IoU of 0.95, whatever the order of pictures."""

    def by_picture(folder: Path) -> dict[bytes, OwnExample]:
        return {one.pictures[0].read(10**6).tobytes(): one for one in read(folder, split)}

    old, new = by_picture(before), by_picture(after)
    assert old.keys() == new.keys()
    for key, true in old.items():
        got = new[key]
        assert got.prefix == true.prefix
        assert [one.label for one in got.objects] == [one.label for one in true.objects]
        for a, b in zip(true.objects, got.objects, strict=True):
            far = np.abs(encode_boxes(a.box_yxyx) - encode_boxes(b.box_yxyx)).max()
            assert far <= 1, (a, b)
            assert a.has_mask == b.has_mask
            assert mask_iou(a.mask(SIZE_HW), b.mask(SIZE_HW)) >= 0.95


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("source", SOURCES)
def test_a_set_comes_back_from_every_format(
    source: str, form: str, masks: bool, tmp_path: Path
) -> None:
    for split, num, seed in (("train", 4, 2), ("valid", 2, 3)):
        SOURCES[source](tmp_path / "set", split, drawn_set(num, seed), masks=masks)
    done = convert(tmp_path / "set", form, tmp_path / "there")
    assert (done.num_rows, done.skipped) == ({"train": 4, "valid": 2}, ())
    convert(tmp_path / "there", "coco", tmp_path / "back")
    for split in ("train", "valid"):
        assert_same(tmp_path / "set", tmp_path / "there", split)
        assert_same(tmp_path / "set", tmp_path / "back", split)


@pytest.mark.parametrize("form", WRITTEN)
def test_masks_with_holes_and_parts_come_back(form: str, tmp_path: Path) -> None:
    mask = np.zeros(SIZE_HW, bool)
    mask[20:90, 30:120] = True
    mask[40:60, 50:80] = False
    mask[30:60, 140:170] = True
    write_pixels(tmp_path / "set" / "a.png", picture(0))
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [30, 20, 140, 70],
        "segmentation": encode_rle(mask),
    }
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIZE_WH[0], "height": SIZE_WH[1]}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "cup"}],
    }
    write_json(tmp_path / "set" / "train.json", content)
    convert(tmp_path / "set", form, tmp_path / "there")
    (one,) = read(tmp_path / "there", "train")
    assert mask_iou(one.objects[0].mask(SIZE_HW), mask) >= 0.95
    assert_same(tmp_path / "set", tmp_path / "there", "train")


@pytest.mark.parametrize("seed", range(8))
def test_filling_undoes_tracing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 30)), int(rng.integers(1, 30)))) < 0.6
    assert np.array_equal(fill_rings([one_ring(mask)], mask.shape), mask) or not mask.any()
    parts = [fill_rings([ring], mask.shape) for ring in trace_rings(mask)]
    assert np.array_equal(np.logical_xor.reduce([np.zeros_like(mask), *parts]), mask)


def test_a_turned_picture_keeps_its_labels(tmp_path: Path) -> None:
    """Labels on stored pixels: other formats hold no turn, so the pixels are written as read."""
    write_pixels(tmp_path / "set" / "a.png", picture(0), orientation=6)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIZE_WH[0], "height": SIZE_WH[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 50, 30]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    write_json(tmp_path / "set" / "train.json", content)
    convert(tmp_path / "set", "yolo", tmp_path / "there")
    assert_same(tmp_path / "set", tmp_path / "there", "train")


def test_words_are_left_out_where_a_format_holds_objects_only(tmp_path: Path) -> None:
    write_pixels(tmp_path / "set" / "a.png", picture(0))
    row = {"image": "a.png", "prefix": "detect cup", "suffix": ""}
    write_json_lines(
        tmp_path / "set" / "train.jsonl", [row, {**row, "prefix": "ocr", "suffix": "x"}]
    )
    done = convert(tmp_path / "set", "voc", tmp_path / "voc")
    assert done.num_rows == {"train": 1}
    assert "write it as jsonl" in done.skipped[0]
    again = convert(tmp_path / "set", "jsonl", tmp_path / "jsonl")
    assert again.num_rows == {"train": 2}
    lines = (tmp_path / "jsonl" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["suffix"] for line in lines] == ["", "x"]
    assert len(list((tmp_path / "jsonl" / "images").iterdir())) == 1


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", "train", drawn_set(2))
    kept = write_text(tmp_path / "out" / "mine.txt", "mine")
    with pytest.raises(ConfigError, match="new folder"):
        convert(tmp_path / "set", "yolo", tmp_path / "out")
    with pytest.raises(ConfigError, match="new folder"):
        convert(tmp_path / "set", "yolo", tmp_path / "set")
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_a_set_without_a_row_that_fits_leaves_nothing(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "set" / "train.jsonl", [{"image": "gone.png"}])
    with pytest.raises(DataError, match=r"no row .* 'prefix'"):
        convert(tmp_path / "set", "coco", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_labels_are_written_so_that_they_are_read_again(tmp_path: Path) -> None:
    names = ('it\'s <red> & "big", yes: no', "ü #1")
    write_pixels(tmp_path / "set" / "a.png", picture(0))
    box = "<loc0100><loc0100><loc0500><loc0600>"
    row = {
        "image": "a.png",
        "prefix": "detect " + " ; ".join(names),
        "suffix": " ; ".join(f"{box} {name}" for name in names),
    }
    write_json_lines(tmp_path / "set" / "train.jsonl", [row])
    for form in ("coco", "yolo", "voc"):
        convert(tmp_path / "set", form, tmp_path / form)
        (one,) = read(tmp_path / form, "train")
        assert [marked.label for marked in one.objects] == list(names)


@pytest.mark.parametrize("form", ["coco", "jsonl"])
def test_codewords_of_an_answer_become_masks_where_their_codec_is_known(
    tmp_path: Path, form: str
) -> None:
    codec = load_mask_codec(EMBEDDED / "mask_codec.safetensors")
    mask = np.zeros((120, 200), bool)
    ys, xs = np.mgrid[:120, :200]
    mask[((ys - 60) / 40) ** 2 + ((xs - 100) / 60) ** 2 < 1] = True
    box = np.array([20 / 120, 40 / 200, 100 / 120, 160 / 200])
    suffix = format_detections([box], ["cup"], [mask_to_codes(codec, mask, box).tolist()])
    write_pixels(tmp_path / "set" / "a.png", picture(1))
    row = {"image": "a.png", "prefix": "segment cup", "suffix": suffix}
    write_json_lines(tmp_path / "set" / "train.jsonl", [row])
    convert(tmp_path / "set", form, tmp_path / "plain")
    convert(tmp_path / "set", form, tmp_path / "there", codec)
    (plain,) = recognise(tmp_path / "plain", "train").rows()
    (found,) = recognise(tmp_path / "there", "train").rows()
    assert isinstance(plain, OwnExample)
    assert isinstance(found, OwnExample)
    assert not plain.objects[0].has_mask
    got = found.objects[0].mask((120, 200))
    assert (got & mask).sum() / (got | mask).sum() > 0.8
    assert found.targets == (() if form == "coco" else (suffix,))
