"""COCO, DocLayNet and own sets in COCO's format, their scores, and answers to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.errors import ConfigError, DataError
from paligemma.eval.foreign import match_examples, read_predictions
from paligemma.example import ALL_CLASSES, OBJECTS, Example, FoundObject, Prediction
from paligemma.metrics.measure import Measure
from paligemma.tasks.grounding.rows import TASKS
from paligemma.tasks.grounding.targets import Piece, noisy_target
from paligemma.tasks.reading.pictures import FilePicture
from paligemma.tasks.task import Task

ROWS: dict[str, Task] = {task.name: task for task in TASKS}
COCO, LABELS = ROWS["coco-detection"], ROWS["coco-detection-labels"]
DOCLAYNET, OWN = ROWS["doclaynet"], ROWS["own-detection"]


def _annotation(
    key: int, image: int, category: int, bbox: list[float], **more: Any
) -> dict[str, Any]:
    x, y, w, h = bbox
    return {
        "id": key,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h]],
        **more,
    }


ANNOTATIONS = [
    _annotation(11, 139, 18, [100, 50, 200, 100]),
    _annotation(12, 139, 17, [0, 0, 40, 40]),
    _annotation(13, 139, 17, [300, 100, 100, 100], iscrowd=1),
    _annotation(14, 7, 18, [0, 0, 200, 100]),
]


def _coco(names: list[str], **more: Any) -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "width": 400, "height": 200},
            {"id": 7, "file_name": "000000000007.jpg", "width": 400, "height": 200},
            {"id": 8, "file_name": "000000000008.jpg", "width": 400, "height": 200},
        ],
        "annotations": ANNOTATIONS,
        "categories": [
            {"id": 17, "name": names[0], "supercategory": "animal"},
            {"id": 18, "name": names[1], "supercategory": "animal"},
        ],
        **more,
    }


def _write(annotations: Path, pictures: Path, content: dict[str, Any]) -> None:
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(content))
    pictures.mkdir(parents=True, exist_ok=True)
    for row in content["images"]:
        path = pictures / row["file_name"]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 2)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    _write(
        tmp_path / "annotations/instances_val2017.json",
        tmp_path / "val2017",
        _coco(["cat", "dog"]),
    )
    return tmp_path


def _perfect(example: Example, **changed: Any) -> Prediction:
    height, width = example.references["size_hw"]
    objects = []
    for row in example.references["objects"]:
        x, y, w, h = row["bbox"]
        box = y / height, x / width, (y + h) / height, (x + w) / width
        objects.append(FoundObject(label=row["label"], box_yxyx=box, **{"score": 0.9, **changed}))
    return Prediction(id=example.id, text="", objects=tuple(objects))


def _by_name(measures: list[Measure]) -> dict[str, float]:
    return {one.name: one.value for one in measures}


def test_each_picture_is_one_example_in_the_order_of_ids(data: Path) -> None:
    examples = list(COCO.read(data, "val"))
    assert [one.id for one in examples] == ["7", "8", "139"]
    assert {one.prefix for one in examples} == {"detect all classes"}
    assert examples[2].pictures == (
        FilePicture(path=data / "val2017/000000000139.jpg", size_hw=(200, 400)),
    )
    cat, dog = ({"label": n, "category_id": k} for n, k in (("cat", 17), ("dog", 18)))
    assert examples[2].references == {
        "size_hw": [200, 400],
        "objects": [
            dog | {"bbox": [100, 50, 200, 100], "area": 20000, "iscrowd": 0},
            cat | {"bbox": [0, 0, 40, 40], "area": 1600, "iscrowd": 0},
            cat | {"bbox": [300, 100, 100, 100], "area": 10000, "iscrowd": 1},
        ],
    }
    assert examples[1].references["objects"] == []
    assert COCO.asking.answer == ALL_CLASSES


def test_classes_are_asked_for_by_name_in_the_other_row(data: Path) -> None:
    examples = list(LABELS.read(data, "val"))
    assert {one.prefix for one in examples} == {"detect cat ; dog"}
    assert LABELS.asking.answer == OBJECTS
    assert examples[1].targets == ("",)
    # Without the crowd; 50 of 200 rows is bin 256 and 100 of 400 columns as well.
    parts = sorted(examples[2].targets[0].split(" ; "))
    assert parts == [
        "<loc0000><loc0000><loc0205><loc0102> cat",
        "<loc0256><loc0256><loc0767><loc0767> dog",
    ]
    assert list(LABELS.read(data, "val"))[2].targets == examples[2].targets


def test_perfect_boxes_have_an_average_precision_of_one(data: Path) -> None:
    for task in (COCO, LABELS):
        examples = list(task.read(data, "val"))
        measures = task.score(examples, [_perfect(one) for one in examples])
        assert measures[0].name == "ap" == task.headline
        scores = _by_name(measures)
        # COCO's scorer adds 2e-16 to what it divides by.
        for name in ("ap", "ap50", "ap/cat", "ap/dog"):
            assert scores[name] == pytest.approx(1.0, abs=1e-15)
        assert scores["unknown"] == 0.0


def test_boxes_that_miss_or_name_another_class_cost(data: Path) -> None:
    examples = list(COCO.read(data, "val"))
    predictions = [_perfect(one) for one in examples]
    predictions[0] = Prediction(id="7", text="")
    scores = _by_name(COCO.score(examples, predictions))
    assert scores["ap/cat"] == pytest.approx(1.0, abs=1e-15)
    # One of two dogs: recall stays at 0.5, so 51 of 101 places have a precision of 1.
    assert scores["ap/dog"] == pytest.approx(51 / 101)
    box = FoundObject(label="zebu", box_yxyx=(0, 0, 1, 1), score=0.5)
    predictions = [*map(_perfect, examples[:1]), Prediction(id="8", text="", objects=(box,))]
    assert _by_name(COCO.score(examples[:2], predictions))["unknown"] == 0.5


def test_a_box_without_confidence_is_an_error(data: Path) -> None:
    examples = list(COCO.read(data, "val"))
    with pytest.raises(DataError, match=r"the prediction of \w+ has none for .*write its score"):
        COCO.score(examples, [_perfect(one, score=None) for one in examples])


def test_the_vectors_of_average_precision_hold_through_files(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "metrics/data/metric_vectors.json"
    vectors = [
        one for one in json.loads(path.read_text())["vectors"] if one["metric"] == "detection_map"
    ]
    assert len(vectors) == 5
    for number, vector in enumerate(vectors):
        folder = tmp_path / str(number)
        content = vector["references"]
        _write(folder / "test.json", folder / "images", content)
        names = {row["id"]: row["name"] for row in content["categories"]}
        examples = list(OWN.read(folder, "test"))
        predictions = []
        for example in examples:
            height, width = example.references["size_hw"]
            objects = []
            for row in vector["predictions"]:
                if str(row["image_id"]) == example.id:
                    x, y, w, h = row["bbox"]
                    box = y / height, x / width, (y + h) / height, (x + w) / width
                    label = names[row["category_id"]]
                    objects.append(FoundObject(label=label, box_yxyx=box, score=row["score"]))
            predictions.append(Prediction(id=example.id, text="", objects=tuple(objects)))
        scores = _by_name(OWN.score(examples, predictions))
        for theirs, ours in {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "AR100": "ar100"}.items():
            assert scores[ours] == pytest.approx(vector["expected"][theirs], abs=1e-6), vector["id"]


def test_doclaynet_is_read_in_its_layout(tmp_path: Path) -> None:
    content = _coco(["Table", "Section-header"])
    for row, name in zip(content["images"], ("aa", "bb", "cc"), strict=True):
        row |= {"file_name": f"{name}.png", "doc_category": "patents", "precedence": 0}
    _write(tmp_path / "COCO/test.json", tmp_path / "PNG", content)
    examples = list(DOCLAYNET.read(tmp_path, "test"))
    assert examples[2].pictures == (FilePicture(path=tmp_path / "PNG/aa.png", size_hw=(200, 400)),)
    scores = _by_name(DOCLAYNET.score(examples, [_perfect(one) for one in examples]))
    assert scores["ap/Section-header"] == 1.0


def test_own_sets_are_read_as_roboflow_writes_them(tmp_path: Path) -> None:
    content = _coco(["bolt", "nut"])
    content["categories"].insert(0, {"id": 0, "name": "parts", "supercategory": "none"})
    for row in content["categories"][1:]:
        row["supercategory"] = "parts"
    _write(tmp_path / "valid/_annotations.coco.json", tmp_path / "valid", content)
    example = next(iter(OWN.read(tmp_path, "valid")))
    assert example.prefix == "detect bolt ; nut"
    assert example.references["classes"] == ["bolt", "nut"]
    assert example.pictures == (
        FilePicture(path=tmp_path / "valid/000000000007.jpg", size_hw=(200, 400)),
    )


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT
        ("result.json", "images"),  # Label Studio
    ],
)
def test_the_only_annotation_file_of_an_export_is_read_for_any_split(
    tmp_path: Path, file: str, pictures: str
) -> None:
    _write(tmp_path / file, tmp_path / pictures, _coco(["bolt", "nut"]))
    (tmp_path / "predictions.json").write_text("[]")
    for split in ("test", "valid"):
        example = next(iter(OWN.read(tmp_path, split)))
        assert example.pictures[0].read(10**6).shape == (2, 4, 3)
    (tmp_path / "more.json").write_text((tmp_path / file).read_text())
    with pytest.raises(DataError, match=r"must hold test/_annotations\.coco\.json or"):
        next(iter(OWN.read(tmp_path, "test")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": []}, "names image 139"),
        ({"images": [], "annotations": []}, "at least one image"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 4}]}, "id 1.*'height'"),
        ({"images": [{"id": 1, "file_name": "a", "width": 0, "height": 1}]}, "got 0x1"),
        ({"annotations": [{**ANNOTATIONS[0], "category_id": 99}]}, "category 99"),
        ({"annotations": [{**ANNOTATIONS[0], "bbox": [1, 2, -3, 4]}]}, "id 11: a box has"),
        ({"annotations": [{**ANNOTATIONS[0], "area": "big"}]}, "'area' must be a number"),
        ({"categories": [{"id": 17}]}, "id 17.*'name'"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "annotations/instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**_coco(["cat", "dog"]), **changed}))
    with pytest.raises(DataError, match=message):
        list(COCO.read(tmp_path, "val"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.jpg", "a/../../b.jpg", "..\\b", ""])
def test_a_file_name_never_leaves_the_folder_of_pictures(data: Path, name: str) -> None:
    path = data / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="must name a file below"):
        list(COCO.read(data, "val"))


def _changed(content: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    return {**content, name: [{**row, **more} for row in content[name]]}


def _measured(tmp_path: Path, content: dict[str, Any]) -> list[Example]:
    """Examples of an own set whose pictures have the size that `_coco` states."""
    (tmp_path / "test").mkdir()
    (tmp_path / "test/_annotations.coco.json").write_text(json.dumps(content))
    for key in (139, 7, 8):
        Image.new("RGB", (400, 200)).save(tmp_path / f"test/{key:012d}.jpg")
    return list(OWN.read(tmp_path, "test"))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("annotations", {"iscrowd": False}),
        ("annotations", {"iscrowd": 0.0, "segmentation": None}),
        ("annotations", {"iscrowd": None}),
        ("annotations", {"area": None}),
        ("annotations", {"area": float("nan"), "iscrowd": float("nan"), "id": None}),
        ("images", {"width": -1, "height": -1}),
        ("images", {"width": None, "height": float("nan")}),
        ("images", {"width": 0, "height": 0.0}),
        ("images", {"width": 400.0, "height": "200"}),
    ],
)
def test_fields_as_exports_have_them_are_read(
    tmp_path: Path, name: str, fields: dict[str, Any]
) -> None:
    plain = _changed(_coco(["cat", "dog"]), "annotations", iscrowd=0)
    (tmp_path / "plain").mkdir()
    (tmp_path / "odd").mkdir()
    expected = _measured(tmp_path / "plain", plain)
    examples = _measured(tmp_path / "odd", _changed(plain, name, **fields))
    assert [one.references for one in examples] == [one.references for one in expected]
    assert [one.targets for one in examples] == [one.targets for one in expected]
    assert [one.pictures[0].size_hw for one in examples] == [(200, 400)] * 3


def test_a_size_that_is_not_stated_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    content = _changed(_coco(["cat", "dog"]), "images", width=-1, height=-1)
    _measured(tmp_path, content)
    path = tmp_path / "test/000000000139.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 400)).save(path, exif=exif)
    last = list(OWN.read(tmp_path, "test"))[-1]
    assert last.references["size_hw"] == [200, 400]
    assert last.pictures[0].read(1_000_000).shape[:2] == (200, 400)
    path.unlink()
    with pytest.raises(DataError, match=r"139\.jpg has no width and height.*no picture"):
        list(OWN.read(tmp_path, "test"))


@pytest.mark.parametrize("as_id", [lambda key: f"frame_{key}", lambda key: f"{key:04}", float])
def test_ids_are_names_too(tmp_path: Path, as_id: Any) -> None:
    content = json.loads(json.dumps(_coco(["cat", "dog"])))
    for rows in ("images", "annotations", "categories"):
        for row in content[rows]:
            row |= {k: as_id(n) for k, n in row.items() if k in ("id", "image_id", "category_id")}
    examples = _measured(tmp_path, content)
    names = sorted(as_id(key) for key in (7, 8, 139))
    assert [one.id for one in examples] == [f"{n:g}" if as_id is float else n for n in names]
    assert examples[0].prefix == "detect cat ; dog"
    scores = _by_name(OWN.score(examples, [_perfect(one) for one in examples]))
    assert scores["ap"] == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(
    "folder",
    ["/srv/set/test/", "C:\\data\\test\\", "..\\up\\", "\\images\\1\\", "./elsewhere/"],
)
def test_names_of_another_place_are_taken_by_their_end(
    tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = _coco(["cat", "dog"])
    for row in content["images"]:
        row["file_name"] = folder + row["file_name"]
    examples = _measured(tmp_path, content)
    assert examples[0].pictures[0].find() == tmp_path / "test/000000000007.jpg"
    assert "which is taken to be 000000000007.jpg" in caplog.text


def test_categories_of_one_name_are_one_class_and_this_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _coco(["cat", "dog"])
    content["categories"].append({"id": 90, "name": "cat"})
    content["annotations"] = [*ANNOTATIONS, _annotation(15, 8, 90, [5, 5, 50, 50])]
    examples = _measured(tmp_path, content)
    assert examples[0].prefix == "detect cat ; dog"
    assert "the categories 17, 90 are all named 'cat' and count as one class" in caplog.text
    rows = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"]}
        for one in content["annotations"]
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**row, "score": 0.5} for row in rows]))
    found, notices = match_examples(read_predictions(path, examples), examples)
    assert not notices
    assert _by_name(OWN.score(examples, found))["ap"] == pytest.approx(1.0, abs=1e-15)


def test_ids_that_pycocotools_stumbles_over_are_said_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _coco(["cat", "dog"], annotations=[{**one, "id": 3} for one in ANNOTATIONS])
    _measured(tmp_path, content)
    assert "json: 3 annotations repeat an id; all annotations count here" in caplog.text


def test_missing_files_are_named(data: Path) -> None:
    with pytest.raises(DataError, match=r"instances_train2017\.json.*cocodataset"):
        list(COCO.read(data, "train"))
    (data / "val2017").rename(data / "elsewhere")
    with pytest.raises(DataError, match=r"000000000007\.jpg.*must lie in one of.*val2017"):
        list(COCO.read(data, "val"))
    with pytest.raises(ConfigError, match="splits val, train, got 'test'"):
        list(COCO.read(data, "test"))


def test_a_class_that_the_benchmark_lacks_is_named(tmp_path: Path) -> None:
    content = _coco(["cat", "unicorn"])
    _write(tmp_path / "annotations/instances_val2017.json", tmp_path / "val2017", content)
    examples = list(COCO.read(tmp_path, "val"))
    with pytest.raises(DataError, match="'unicorn', which the benchmark does not have"):
        COCO.score(examples, [Prediction(id=one.id, text="") for one in examples])


# Answers to train on


def _tokens(text: str) -> int:
    return text.count("<loc") or 1


def _noisy(seed: int, **options: Any) -> tuple[Piece, ...]:
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 1.0, 1.0)]
    asked = {"max_tokens": 40, "count_tokens": _tokens, **options}
    return noisy_target(boxes, ["cat", "dog"], np.random.default_rng(seed), **asked)


def test_objects_come_first_in_random_order_and_noise_fills_the_rest() -> None:
    # 5 + 6 tokens of objects, then four noise boxes of 6 tokens: 35 of 40.
    pieces = _noisy(0)
    parts = "".join(piece.text for piece in pieces).split(" ; ")
    assert sorted(parts[:2]) == [
        "<loc0000><loc0000><loc0512><loc0512> cat",
        "<loc0256><loc0256><loc1023><loc1023> dog",
    ]
    assert len(parts) == 6
    assert all(part.endswith("<noise>") for part in parts[2:])
    orders = {"".join(piece.text for piece in _noisy(seed)).index("cat") for seed in range(8)}
    assert len(orders) == 2
    assert _noisy(3) == _noisy(3)


def test_only_the_places_of_noise_carry_no_loss() -> None:
    pieces = _noisy(0)
    silent = [k for k, piece in enumerate(pieces) if not piece.has_loss]
    assert len(silent) == 4
    for k in silent:
        assert pieces[k].text.count("<loc") == 4
        assert pieces[k + 1] == Piece(text="<noise>")
    for piece in pieces:
        numbers = [int(n) for n in piece.text.replace("<loc", "").split(">") if n.isdigit()]
        if numbers:
            assert numbers[0] <= numbers[2]
            assert numbers[1] <= numbers[3]


def test_separator_and_noise_can_be_chosen_and_objects_never_break() -> None:
    text = "".join(piece.text for piece in _noisy(0, separator="", noise="nothing"))
    assert ";" not in text
    assert text.count("<loc") == 4 * (2 + text.count("nothing"))
    assert text.count("nothing") == 6
    # Room for one object of five tokens and no second one of six.
    assert len(_noisy(0, max_tokens=10)) == 2
    assert _noisy(0, max_tokens=4) == ()


def test_a_target_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(DataError, match="every box needs a label, got 0 and 1"):
        noisy_target([], ["cat"], np.random.default_rng(0), max_tokens=9, count_tokens=_tokens)
    with pytest.raises(DataError, match="at least one token"):
        _noisy(0, count_tokens=lambda text: 0)
