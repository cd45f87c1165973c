"""RefCOCO, RefCOCO+ and RefCOCOg in their official layout, and their scores."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.errors import ConfigError, DataError
from paligemma.example import MASK, Example, FoundObject, Prediction
from paligemma.metrics.measure import Measure
from paligemma.outputs.boxes import encode_boxes, format_loc
from paligemma.outputs.rle import decode_rle, encode_rle
from paligemma.outputs.vqvae import MaskCodec
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.grounding.rows import TASKS
from paligemma.tasks.grounding.targets import referring_target
from paligemma.tasks.lint import Lint
from paligemma.tasks.reading.finding import look_again
from paligemma.tasks.reading.pictures import FilePicture
from paligemma.tasks.task import Task

REFCOCO, REFCOCO_PLUS, REFCOCOG = TASKS[:3]
CODES = "".join(f"<seg{n:03d}>" for n in range(16))
SIZE_WH = (40, 20)
# x, y, width, height of each annotation; the last one is a crowd in run lengths.
BOXES = {101: [10, 5, 20, 10], 102: [0, 0, 8, 20], 103: [20, 10, 20, 10]}


def _ref(ref_id: int, ann_id: int, image_id: int, split: str, *sents: str) -> dict[str, Any]:
    sentences = [
        {"tokens": sent.split(), "raw": sent.upper(), "sent_id": 10 * ref_id + n, "sent": sent}
        for n, sent in enumerate(sents)
    ]
    return {
        "sent_ids": [one["sent_id"] for one in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": sentences,
        "category_id": 18,
    }


def _polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folders as refer and COCO unpack them."""
    refs = {
        "refcoco/refs(unc).p": [
            _ref(1, 101, 5, "val", "left dog", "the dog"),
            _ref(2, 103, 6, "train", "people"),
            _ref(3, 102, 7, "train", "lamp"),
            _ref(4, 102, 7, "testA", "woman"),
        ],
        "refcoco+/refs(unc).p": [
            _ref(1, 101, 5, "train", "brown"),
            _ref(2, 103, 6, "testB", "crowd"),
        ],
        "refcocog/refs(umd).p": [
            _ref(1, 101, 8, "train", "a dog that sleeps"),
            _ref(9, 101, 5, "test", "a dog"),
        ],
    }
    for name, rows in refs.items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(pickle.dumps(rows, protocol=2))
    crowd = {"size": [20, 40], "counts": [400, 400]}
    annotations = [
        {"id": key, "image_id": image, "bbox": BOXES[key], "segmentation": _polygon(*BOXES[key])}
        for key, image in ((101, 5), (102, 7))
    ]
    annotations[0] |= {"iscrowd": 0, "area": 200, "category_id": 18}
    annotations.append({"id": 103, "image_id": 6, "bbox": BOXES[103], "segmentation": crowd})
    images = [
        {"id": n, "file_name": f"{n:012d}.jpg", "width": SIZE_WH[0], "height": SIZE_WH[1]}
        for n in (5, 6, 7, 8)
    ]
    coco = {"info": {}, "images": images, "annotations": annotations, "categories": []}
    (tmp_path / "instances_train2017.json").write_text(json.dumps(coco))
    (tmp_path / "train2017").mkdir()
    for n in (5, 6, 7):
        Image.new("RGB", SIZE_WH, (n, 0, 0)).save(tmp_path / f"train2017/{n:012d}.jpg")
    return tmp_path


def _by_name(measures: list[Measure]) -> dict[str, float]:
    return {one.name: one.value for one in measures}


def _perfect(example: Example) -> Prediction:
    box = example.references["box_yxyx"]
    text = format_loc(encode_boxes(box).tolist()) + CODES
    found = FoundObject(label="", box_yxyx=tuple(box), mask=example.references["mask"])
    return Prediction(id=example.id, text=text, objects=(found,))


def test_the_rows_ask_as_the_recipe_does() -> None:
    assert [task.name for task in TASKS[:3]] == ["refcoco", "refcoco+", "refcocog"]
    assert REFCOCO.splits[:3] == ("val", "testA", "testB")
    assert REFCOCOG.splits[:2] == ("val", "test")
    for task in TASKS[:3]:
        assert (task.asking.text_len, task.asking.max_new_tokens) == (48, 48)
        assert (task.asking.resize_method, task.asking.answer) == (BILINEAR, MASK)
        assert (task.headline, task.transfer, task.family) == ("miou", "refcoco_seg", "grounding")
    assert {key.task for key in REFCOCO_PLUS.published} == {"RefCOCO+"}


def test_each_sentence_is_one_example_and_the_prompt_is_the_sentence_alone(data: Path) -> None:
    examples = list(REFCOCO.read(data, "val"))
    assert [(one.id, one.prefix, one.unit) for one in examples] == [
        ("1-10", "left dog", "5"),
        ("1-11", "the dog", "5"),
    ]
    assert examples[0].references["box_yxyx"] == [0.25, 0.25, 0.75, 0.75]
    mask = decode_rle(examples[0].references["mask"])
    assert mask.shape == (20, 40)
    assert mask.sum() == 200
    assert mask[5:15, 10:30].all()
    assert examples[0].pictures == (
        FilePicture(path=data / "train2017/000000000005.jpg", size_hw=(20, 40)),
    )
    assert examples[0].pictures[0].read(10_000).shape == (20, 40, 3)
    json.dumps(examples[0].references)


def test_outlines_as_run_lengths_are_read(data: Path) -> None:
    (example,) = REFCOCO_PLUS.read(data, "testB")
    mask = decode_rle(example.references["mask"])
    assert mask[:, 20:].all()
    assert not mask[:, :20].any()


def test_pictures_under_their_names_of_2014_are_found(data: Path) -> None:
    (data / "train2017/000000000005.jpg").rename(data / "train2017/COCO_train2014_000000000005.jpg")
    example = next(iter(REFCOCO.read(data, "val")))
    assert example.pictures[0].read(10_000).shape == (20, 40, 3)


def test_the_folder_that_holds_the_first_picture_is_taken(data: Path) -> None:
    """As github.com/lichengunc/refer lays them out, beside a folder of others."""
    deep = data / "images/mscoco/images/train2014"
    deep.mkdir(parents=True)
    for path in (data / "train2017").iterdir():
        path.rename(deep / f"COCO_train2014_{path.name}")
    for folder in ("train2017", "images"):
        (data / folder / "other.jpg").touch()
    example = next(iter(REFCOCO.read(data, "val")))
    assert example.pictures[0].read(10_000).shape == (20, 40, 3)
    # Under a name of its own, it is found from `images` on.
    (data / "images/mscoco/images").rename(data / "images/mscoco/pictures")
    look_again()
    example = next(iter(REFCOCO.read(data, "val")))
    assert example.pictures[0].read(10_000).shape == (20, 40, 3)


def test_refs_may_be_given_as_json(data: Path) -> None:
    path = data / "refcoco/refs(unc).p"
    rows = pickle.loads(path.read_bytes())
    path.unlink()
    path.with_suffix(".json").write_text(json.dumps(rows))
    assert [one.id for one in REFCOCO.read(data, "testA")] == ["4-40"]


def test_combined_training_leaves_out_every_picture_that_is_tested_on(data: Path) -> None:
    # Of the pictures that training shows, 5 is tested in RefCOCO and RefCOCOg, 6 in RefCOCO+ and 7
    # in RefCOCO; a picture of its own remains for RefCOCOg.
    coco = json.loads((data / "instances_train2017.json").read_text())
    coco["annotations"].append(coco["annotations"][0] | {"id": 104, "image_id": 8})
    (data / "instances_train2017.json").write_text(json.dumps(coco))
    refs = [_ref(1, 104, 8, "train", "a dog that sleeps"), _ref(9, 101, 5, "test", "a dog")]
    (data / "refcocog/refs(umd).p").write_bytes(pickle.dumps(refs))
    for dataset in ("refcoco", "refcoco+"):
        path = data / f"{dataset}/refs(unc).p"
        rows = pickle.loads(path.read_bytes())
        rows.append(_ref(50, 104, 8, "train", "sleeping one"))
        path.write_bytes(pickle.dumps(rows))
    assert [one.id for one in REFCOCO.read(data, "train-combined")] == [
        "refcoco/50-500",
        "refcoco+/50-500",
        "refcocog/1-10",
    ]
    assert [one.id for one in REFCOCO.read(data, "train")] == ["2-20", "3-30", "50-500"]


def test_perfect_answers_score_one_and_an_empty_one_nothing(data: Path) -> None:
    examples = list(REFCOCO.read(data, "val"))
    scores = _by_name(REFCOCO.score(examples, [_perfect(one) for one in examples]))
    assert scores == {
        "miou": 1.0,
        "ciou": 1.0,
        "boxacc_0.5": 1.0,
        "boxacc_0.75": 1.0,
        "invalid": 0.0,
    }
    half = [_perfect(examples[0]), Prediction(id=examples[1].id, text="")]
    scores = _by_name(REFCOCO.score(examples, half))
    assert (scores["miou"], scores["boxacc_0.5"], scores["invalid"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        " <loc0256><loc0256><loc0767><loc0767>" + CODES,
        "<loc0256><loc0256><loc0767><loc0767> " + CODES,
        "<loc0256><loc0256><loc0767>" + CODES,
        "<loc0256><loc0256><loc0767><loc0767>" + CODES[:-8],
        "<loc0767><loc0256><loc0256><loc0767>" + CODES,
        "<loc0256><loc0256><loc0257><loc0767>" + CODES,  # no whole pixel of twenty rows
        "<loc0256><loc0256><loc0767><loc1024>" + CODES,
        "<loc0256><loc0256><loc0767><loc0767>" + CODES.replace("<seg015>", "<seg128>"),
    ],
)
def test_an_answer_that_does_not_begin_with_box_and_mask_is_invalid(data: Path, text: str) -> None:
    example = next(iter(REFCOCO.read(data, "val")))
    prediction = Prediction(id=example.id, text=text, objects=_perfect(example).objects)
    scores = _by_name(REFCOCO.score([example], [prediction]))
    assert (scores["miou"], scores["invalid"]) == (0.0, 1.0)


def test_what_follows_the_mask_is_ignored_and_its_pixels_count(data: Path) -> None:
    example = next(iter(REFCOCO.read(data, "val")))
    mask = np.zeros((20, 40), bool)
    mask[5:15, 10:20] = True
    found = FoundObject(label="dog", box_yxyx=(0.25, 0.25, 0.75, 0.75), mask=encode_rle(mask))
    text = "<loc0256><loc0256><loc0767><loc0767>" + CODES + " dog ; <loc0000>"
    prediction = Prediction(id=example.id, text=text, objects=(found,))
    scores = _by_name(REFCOCO.score([example], [prediction]))
    assert scores["miou"] == 0.5
    assert scores["boxacc_0.75"] == 1.0


def test_mask_tokens_without_a_decoded_mask_are_an_error_not_a_zero(data: Path) -> None:
    example = next(iter(REFCOCO.read(data, "val")))
    prediction = Prediction(id=example.id, text=_perfect(example).text)
    with pytest.raises(DataError, match="decoded mask is missing"):
        REFCOCO.score([example], [prediction])


def test_the_answer_to_train_on_is_four_places_and_sixteen_codewords(data: Path) -> None:
    example = next(iter(REFCOCO.read(data, "val")))
    text = referring_target(example, MaskCodec())
    assert text.startswith("<loc0256><loc0256><loc0767><loc0767><seg")
    assert text.count("<seg") == 16
    assert text.endswith(">")


def test_a_row_without_a_mask_codec_is_left_out_and_one_with_it_is_learnt(data: Path) -> None:
    processor, _ = load_processor("tiny", LoadOptions())
    (row, found), *_ = Lint(REFCOCO, processor, MaskCodec).rows(data, "train")
    assert found == []
    assert row is not None
    assert row.targets[0].count("<seg") == 16
    rows = Lint(REFCOCO, processor, lambda: None).rows(data, "train")
    assert {(row, one.rule) for row, found in rows for one in found} == {(None, "mask")}


def _edit_refs(data: Path, **changed: Any) -> None:
    path = data / "refcoco/refs(unc).p"
    rows = pickle.loads(path.read_bytes())
    for name, new in changed.items():
        if new is None:
            del rows[0][name]
        else:
            rows[0][name] = new
    path.write_bytes(pickle.dumps(rows))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sentences": None}, r"refs\(unc\)\.p, row 0 .*'sentences'"),
        ({"sentences": [{"sent": "x"}]}, "'sent_id'"),
        ({"sentences": ["x"]}, "'sentences' must be an object"),
        ({"ann_id": 999}, "lacks annotation 999 on image 5, which ref 1 describes"),
        ({"image_id": 7}, "lacks annotation 101 on image 7"),
    ],
)
def test_a_missing_or_wrong_field_is_named(
    data: Path, changed: dict[str, Any], message: str
) -> None:
    _edit_refs(data, **changed)
    with pytest.raises(DataError, match=message):
        list(REFCOCO.read(data, "val"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bbox": [1, 2, 3]}, "bbox must be"),
        ({"bbox": [1, 2, 3, float("nan")]}, "bbox must be"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 101: segmentation must be polygons"),
        ({"segmentation": None}, "segmentation must be polygons"),
        ({"segmentation": [[10**400] * 6]}, "segmentation must be polygons"),
        ({"segmentation": [["a"] * 6]}, "segmentation must be polygons"),
        ({"segmentation": {"size": [2, 2], "counts": [4]}}, r"lies on a picture of \[20, 40\]"),
        ({"segmentation": {"size": [20, 40], "counts": [1]}}, "run lengths must"),
    ],
)
def test_a_wrong_outline_is_named(data: Path, changed: dict[str, Any], message: str) -> None:
    path = data / "instances_train2017.json"
    coco = json.loads(path.read_text())
    coco["annotations"][0].update(changed)
    path.write_text(json.dumps(coco))
    with pytest.raises(DataError, match=message):
        list(REFCOCO.read(data, "val"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refcoco/refs(unc).p", r"refcoco/refs\(unc\)\.p or .*lichengunc/refer"),
        ("instances_train2017.json", "instances_train2017.json or .*cocodataset"),
        ("train2017", "train2017 or .*cocodataset"),
    ],
)
def test_a_missing_file_is_named_with_its_source(data: Path, name: str, message: str) -> None:
    (data / name).rename(data / "elsewhere")
    with pytest.raises(DataError, match=message):
        list(REFCOCO.read(data, "val"))


def test_a_refs_file_that_would_run_code_is_refused(data: Path) -> None:
    (data / "refcoco/refs(unc).p").write_bytes(b"cbuiltins\nprint\n(S'hello'\ntR.")
    with pytest.raises(DataError, match="nothing was loaded"):
        list(REFCOCO.read(data, "val"))


def test_an_unknown_split_is_named(data: Path) -> None:
    with pytest.raises(ConfigError, match="splits val, test, train, train-combined, got 'testA'"):
        list(REFCOCOG.read(data, "testA"))


def test_the_vector_of_the_prompt_holds(data: Path) -> None:
    vectors = json.loads(
        (Path(__file__).parents[2] / "metrics/data/metric_vectors.json").read_text()
    )["vectors"]
    (vector,) = (
        one
        for one in vectors
        if one["metric"] == "prompt_format" and one["params"]["task"] == "refcoco"
    )
    given, wanted = vector["predictions"], vector["expected"]
    _edit_refs(data, sentences=[{"sent_id": 1, "sent": given["sentence"]}])
    example = next(iter(REFCOCO.read(data, "val")))
    assert example.prefix == wanted["prefix"]
    box = encode_boxes(given["box_ymin_xmin_ymax_xmax"]).tolist()
    assert format_loc(box) + CODES == wanted["suffix"]


def test_every_row_is_whole() -> None:
    task: Task
    for task in TASKS:
        assert task.files
        assert task.traps
        assert all(one.source for one in task.files)
