"""Detections in the formats of other tools."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from paligemma.errors import ConfigError, DataError, MissingExtraError
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.detections import Detections, coco_dataset, save_coco
from paligemma.outputs.export import save_png, yolo_names
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.types import Detection
from paligemma.outputs.vqvae import MaskCodec, MaskCodecConfig

# pycocotools converts its decoded masks in a way that NumPy 2 warns of.
coco_decodes = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WH = (100, 50)


def region() -> MaskRegion:
    mask = np.zeros((50, 100), bool)
    mask[10:20, 30:50] = True
    mask[10:12, 30:32] = False
    return MaskRegion.from_array(mask)


def sample(*, swapped: bool = False) -> Detections:
    items = [
        Detection(label="dog", box_yxyx=(0.2, 0.3, 0.4, 0.5), image_wh=WH, score=0.75),
        Detection(
            label="cat", box_yxyx=(0.2, 0.3, 0.4, 0.5), image_wh=WH, score=0.5, region=region()
        ),
    ]
    if swapped:
        items.append(Detection(label="odd", box_yxyx=(0.4, 0.3, 0.2, 0.5), image_wh=WH))
    return Detections(items=tuple(items), image_wh=WH, text="...")


@coco_decodes
def test_coco_annotations_load_in_pycocotools() -> None:
    data = coco_dataset([("a.jpg", sample()), ("b.jpg", sample(swapped=True))])
    index = COCO()
    index.dataset = json.loads(json.dumps(data))
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
        results = index.loadRes(sample().to_coco(image_id=2, category_ids={"cat": 1, "dog": 2}))
    assert [c["name"] for c in index.dataset["categories"]] == ["cat", "dog"]
    assert [a["id"] for a in index.dataset["annotations"]] == [1, 2, 3, 4]
    assert len(results.getAnnIds()) == 2
    (cat,) = index.loadAnns(index.getAnnIds(imgIds=1, catIds=1))
    assert cat["bbox"] == [30, 10, 20, 10]
    assert cat["area"] == 196
    assert np.array_equal(index.annToMask(cat) > 0, region().to_array())


@coco_decodes
def test_coco_polygons_cover_the_mask_and_an_empty_mask_keeps_its_run_lengths() -> None:
    _, cat = sample().to_coco(polygons=True)
    drawn = coco_mask.decode(coco_mask.frPyObjects(cat["segmentation"], 50, 100))[..., 0]
    assert abs(int(drawn.sum()) - 196) < 30
    empty = MaskRegion(crop=np.zeros((0, 0), bool), corner_xy=(0, 0), image_wh=WH)
    item = Detection(label="x", box_yxyx=(0, 0, 1, 1), image_wh=WH, region=empty)
    (record,) = Detections(items=(item,), image_wh=WH).to_coco(polygons=True)
    assert set(record["segmentation"]) == {"size", "counts"}
    assert "score" not in record


def test_yolo_lines_are_class_centre_and_size() -> None:
    lines = sample().to_yolo().splitlines()
    assert lines == [
        "1 0.400000 0.300000 0.200000 0.200000",
        "0 0.400000 0.300000 0.200000 0.200000",
    ]
    scored = sample().to_yolo(class_names=["dog", "cat"], with_scores=True).splitlines()
    assert scored[0] == "0 0.400000 0.300000 0.200000 0.200000 0.750000"


def test_yolo_polygons_follow_the_mask_and_fall_back_to_the_box() -> None:
    dog, cat = sample().to_yolo(polygons=True).splitlines()
    assert dog == "1 0.300000 0.200000 0.500000 0.200000 0.500000 0.400000 0.300000 0.400000"
    points = np.array(cat.split()[1:], float).reshape(-1, 2)
    assert (points.min(0).tolist(), points.max(0).tolist()) == ([0.3, 0.2], [0.5, 0.4])
    assert len(points) == 6


def test_names_of_classes_are_read_back_from_yaml_whatever_they_are() -> None:
    yaml = pytest.importorskip("yaml")
    words = [
        "yes",
        "null",
        "1",
        "1e3",
        "- a",
        "# a",
        "a: b",
        "{a}",
        "~",
        "&a",
        "*a",
        "!a",
        "|",
        "%",
    ]
    quotes = [
        '"a"',
        "'",
        "\\",
        "\\x41",
        "a\nb",
        "a\tb",
        " a ",
        "",
        "A",
        "a",
        "é",
        "e\u0301",
        "猫😀",
    ]
    # Which YAML refuses as they are, or takes for the end of a line.
    odd = ["a\x7f", "\x80", "a\x85b", "a\u2028b", "a\u2029b", "\ufeffa", "\ufffe", "\ud800", "\x1b"]
    names = [*words, *quotes, *odd, "x" * 10_000]
    text = yolo_names(names)
    assert yaml.safe_load(text.encode()) == {"names": dict(enumerate(names))}


def test_a_label_outside_the_given_classes_is_an_error_and_not_a_loss() -> None:
    with pytest.raises(DataError, match="'cat' is not"):
        sample().to_yolo(class_names=["dog"])
    with pytest.raises(DataError, match="category_ids"):
        sample().to_coco(category_ids={"dog": 1})


def test_boxes_without_size_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(sample(swapped=True).to_coco()) == 2
    assert "1 of 3 boxes" in caplog.text


def test_supervision_gets_masks_scores_and_names(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("supervision")
    ours = sample().to_supervision()
    assert ours.xyxy.tolist() == pytest.approx(np.float32([[30, 10, 50, 20]] * 2))
    assert ours.confidence.tolist() == [0.75, 0.5]
    assert (ours.class_id.tolist(), ours.data["class_name"].tolist()) == ([1, 0], ["dog", "cat"])
    assert ours.mask.shape == (2, 50, 100)
    assert ours.mask[0].sum() == 0  # the dog has no mask, and its box is none
    assert ours.data["has_mask"].tolist() == [False, True]
    assert "1 of 2 objects have no mask" in caplog.text
    assert np.array_equal(ours.mask[1], region().to_array())
    assert len(Detections(items=(), image_wh=WH).to_supervision()) == 0
    assert sample()[:1].to_supervision().mask is None


def test_masks_are_an_array_with_an_empty_one_where_there_is_none() -> None:
    masks = sample().masks
    assert masks is not None
    assert (masks.shape, masks.dtype, masks[0].any()) == ((2, 50, 100), bool, False)
    assert np.array_equal(masks[1], region().to_array())
    assert sample()[:1].masks is None
    assert Detections(items=(), image_wh=WH).masks is None


def test_without_supervision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[supervision\]"):
        sample().to_supervision()


def test_only_confident_valid_and_unscored_objects_stay_above_a_score() -> None:
    detections = sample(swapped=True)
    assert [d.label for d in detections.above(0.6)] == ["dog"]
    unscored = Detection(label="new", box_yxyx=(0, 0, 1, 1), image_wh=WH)
    assert len(Detections(items=(unscored,), image_wh=WH).above(0.9)) == 1
    for score in (float("nan"), 50, -0.1):
        with pytest.raises(ConfigError, match=r"a confidence in \[0, 1\]"):
            detections.above(score)


def test_codewords_become_masks_of_the_image() -> None:
    seg = "".join(f"<seg{c:03d}>" for c in range(16))
    box = "<loc0100><loc0200><loc0900><loc0800>"
    parsed = parse_objects(f"{box}{seg} cat ; <loc0900><loc0200><loc0100><loc0800>{seg} odd")
    codec = MaskCodec(MaskCodecConfig(channels=(2, 2, 2), hidden=4, code_dim=3, num_codes=128))
    cat, odd = to_detections(parsed, WH, codec=codec)
    assert cat.mask is not None
    assert cat.mask.shape == (50, 100)
    assert cat.codes == tuple(range(16))
    assert (odd.mask, odd.is_valid) == (None, False)
    assert to_detections(parsed, WH)[0].mask is None
    small = MaskCodec(MaskCodecConfig(channels=(2, 2, 2), hidden=4, code_dim=3, num_codes=8))
    assert to_detections(parsed, WH, codec=small)[0].mask is None


def test_a_png_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    save_png(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.size == (4, 4)
    with pytest.raises(DataError, match=r"\.png"):
        save_png(picture, tmp_path / "a.jpg")
    with pytest.raises(DataError, match="written"):
        save_png(picture, tmp_path / "absent" / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_detections_are_a_sequence() -> None:
    detections = sample()
    assert (len(detections), detections[0].label, len(detections[:1])) == (2, "dog", 1)
    assert [d.label for d in detections] == ["dog", "cat"]


def test_a_coco_file_of_many_pictures_takes_category_ids_and_polygons(tmp_path: Path) -> None:
    region = MaskRegion(crop=np.ones((20, 30), bool), corner_xy=(5, 7), image_wh=(100, 80))
    item = Detection(label="cat", box_yxyx=(0, 0, 0.5, 0.5), image_wh=(100, 80), region=region)
    found = Detections(items=(item,), image_wh=(100, 80))
    pairs = [("a.png", found), (tmp_path / "b.png", found)]
    save_coco(tmp_path / "all.json", iter(pairs), category_ids={"cat": 17}, polygons=True)
    body = json.loads((tmp_path / "all.json").read_text())
    assert body == coco_dataset(pairs, category_ids={"cat": 17}, polygons=True)
    assert [one["file_name"] for one in body["images"]] == ["a.png", str(tmp_path / "b.png")]
    assert [one["category_id"] for one in body["annotations"]] == [17, 17]
    assert isinstance(body["annotations"][0]["segmentation"], list)
    assert body["categories"] == [{"id": 17, "name": "cat"}]
    with pytest.raises(DataError, match="every label must be in category_ids"):
        save_coco(tmp_path / "none.json", pairs, category_ids={"dog": 1})
    assert not (tmp_path / "none.json").exists()
