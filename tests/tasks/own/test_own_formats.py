"""A user's labelled pictures in every format become the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_set import (
    CLASSES,
    SIZE_WH,
    Marked,
    drawn_set,
    picture,
    write_coco,
    write_labelme,
    write_voc,
    write_yolo,
)
from task_files import write_json, write_json_lines, write_picture, write_pixels, write_text

from paligemma.errors import DataError, ImageError
from paligemma.outputs.boxes import encode_boxes
from paligemma.outputs.export import yolo_names
from paligemma.outputs.parse import parse_objects
from paligemma.tasks.own.data_yaml import read_data_yaml
from paligemma.tasks.own.files import recognise
from paligemma.tasks.own.labels import OwnExample, RowError
from paligemma.tasks.own.rows import TASKS

(OWN,) = TASKS
WRITERS = {
    "COCO": write_coco,
    "YOLO": write_yolo,
    "Pascal VOC": write_voc,
    "LabelMe": write_labelme,
}


def rows(data: Path, split: str = "train") -> list[OwnExample]:
    found = list(OWN.rows(data, split))
    assert all(isinstance(one, OwnExample) for one in found), found
    return found  # type: ignore[return-value]


def faults(data: Path, split: str = "train") -> list[str]:
    return [str(one) for one in OWN.rows(data, split) if isinstance(one, DataError)]


def bins(marked: Marked) -> list[int]:
    x, y, w, h = marked.xywh
    width, height = SIZE_WH
    box = [y / height, x / width, (y + h) / height, (x + w) / width]
    return encode_boxes(box).tolist()


@pytest.mark.parametrize("name", WRITERS)
def test_boxes_become_rows_that_detect_all_classes_of_the_set(name: str, tmp_path: Path) -> None:
    pictures = drawn_set(5)
    WRITERS[name](tmp_path, "train", pictures, masks=False)
    assert recognise(tmp_path, "train").format == name
    found = rows(tmp_path)
    assert {one.prefix for one in found} == {"detect cup ; tea pot"}
    assert len({one.id for one in found}) == len(found)
    for one, marked in zip(found, pictures, strict=True):
        parsed = parse_objects(one.targets[0])
        assert parsed.rest == ""
        assert [o.label for o in parsed.objects] == [m.label for m in marked]
        assert (
            np.abs(
                np.array([o.loc for o in parsed.objects]).reshape(-1, 4)
                - np.array([bins(m) for m in marked]).reshape(-1, 4)
            ).max(initial=0)
            <= 1
        )
        assert one.pictures[0].read(10**6).shape == (SIZE_WH[1], SIZE_WH[0], 3)
    assert found[1].targets == ("",)


@pytest.mark.parametrize("name", WRITERS)
def test_outlines_become_masks_unless_the_folder_says_otherwise(name: str, tmp_path: Path) -> None:
    pictures = drawn_set(4)
    WRITERS[name](tmp_path, "train", pictures)
    found = rows(tmp_path)
    assert {one.prefix for one in found} == {"segment cup ; tea pot"}
    assert all(one.needs_masks and not one.targets for one in found)
    for one, marked in zip(found, pictures, strict=True):
        for got, true in zip(one.objects, marked, strict=True):
            corners = np.array(true.ring)
            (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
            mask = got.mask((SIZE_WH[1], SIZE_WH[0]))
            assert mask[int(y0 + y1) // 2, int(x0 + x1) // 2]
            x, y = corners[:, 0], corners[:, 1]
            area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
            assert mask.sum() == pytest.approx(area, rel=0.05)
    write_json(tmp_path / "own-format.json", {"masks": False})
    assert {one.prefix for one in rows(tmp_path)} == {"detect cup ; tea pot"}
    assert all(one.targets for one in rows(tmp_path))


def test_captions_of_coco_are_answers_of_one_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "train2017" / "1.jpg")
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 12, "height": 8}],
        "annotations": [
            {"id": k, "image_id": 1, "caption": text} for k, text in enumerate(("a", "b "))
        ],
    }
    write_json(tmp_path / "annotations" / "captions_train2017.json", content)
    (one,) = rows(tmp_path)
    assert (one.prefix, one.targets) == ("caption en", ("a", "b"))
    write_json(tmp_path / "own-format.json", {"language": "de"})
    assert rows(tmp_path)[0].prefix == "caption de"
    (tmp_path / "train2017").rename(tmp_path / "val2014")
    (tmp_path / "annotations").rename(tmp_path / "older")
    content["images"] = [{"id": 1, "file_name": "1.jpg"}]
    write_json(tmp_path / "annotations" / "captions_val2014.json", content)
    (one,) = rows(tmp_path, "valid")
    assert one.pictures[0].read(1000).shape == (8, 12, 3)


def test_coco_files_as_exports_have_them_give_the_same_rows(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", drawn_set(4), masks=False)
    expected = [(one.prefix, one.targets) for one in rows(tmp_path)]
    content = json.loads(path.read_text())
    for row in content["images"]:
        row |= {"id": f"frame {row['id']}", "width": -1, "height": None}
        row["file_name"] = f"D:\\photos\\{Path(row['file_name']).name}"
    first = content["annotations"][0]["category_id"]
    for k, row in enumerate(content["annotations"]):
        row |= {"image_id": f"frame {row['image_id']}", "iscrowd": None, "area": None}
        row["category_id"] = float(row["category_id"])
        if k and row["category_id"] == first:
            row["category_id"] = "again"
    name = next(one["name"] for one in content["categories"] if one["id"] == first)
    content["categories"].append({"id": "again", "name": name})
    write_json(path, content)
    assert [(one.prefix, one.targets) for one in rows(tmp_path)] == expected
    content["images"][0]["file_name"] = "D:\\photos\\none.jpg"
    write_json(path, content)
    (fault,) = faults(tmp_path)
    assert "none.jpg" in fault


def _broken(annotation: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**annotation, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bbox": [10, 10, -5, 5]}, ("swapped", "upper left")),
        ({"bbox": [10, 150, 20, 60]}, ("box outside", "must lie in the picture")),
        ({"bbox": [5, 150, 100, 40]}, ("box outside", "swap x and y")),
        ({"bbox": [10, 10, 0, 5]}, ("box empty", "1024 steps")),
        ({"bbox": [10, 10, 5]}, ("row", "bbox must be")),
        ({"category_id": 9}, ("row", "category_id")),
        ({"segmentation": [[1, 2, 3]]}, ("row", "polygons")),
        ({"segmentation": {"size": [3, 3], "counts": "09"}}, ("row", "size")),
    ],
)
def test_one_bad_object_loses_its_picture_and_no_other(
    changes: dict[str, Any], words: tuple[str, str], tmp_path: Path
) -> None:
    path = write_coco(tmp_path, "train", drawn_set(4))
    content = json.loads(path.read_text())
    content["annotations"][0].update(changes)
    write_json(path, content)
    found = list(OWN.rows(tmp_path, "train"))
    assert len(found) == 4
    (fault,) = [one for one in found if isinstance(one, DataError)]
    assert isinstance(fault, RowError)
    assert words[0] in fault.rule
    assert words[1] in str(fault)
    assert "image 0" in str(fault)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", "class x y width height"),
        ("cup 0.5 0.5 0.2 0.2", "class x y width height"),
        ("2 0.5 0.5 0.2 0.2", "0..1"),
        ("0 0.9 0.5 0.6 0.2", "must lie in the picture"),
        ("0 nan 0.5 0.6 0.2", "finite"),
        ("0 0.5 0.5 0 0.2", "1024 steps"),
    ],
)
def test_a_bad_line_of_yolo_is_named_with_its_file(line: str, words: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", drawn_set(3), masks=False)
    write_text(tmp_path / "train" / "labels" / "0.txt", line + "\n")
    (said,) = faults(tmp_path)
    assert words in said
    assert "0.txt" in said
    assert len(list(OWN.rows(tmp_path, "train"))) == 3


def test_an_edge_a_little_outside_is_moved_to_the_border_with_a_note(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", drawn_set(1), masks=False)
    write_text(tmp_path / "train" / "labels" / "0.txt", "0 0.903 0.5 0.2 0.2\n")
    (one,) = rows(tmp_path)
    assert one.targets == ("<loc0409><loc0821><loc0614><loc1023> cup",)
    assert [note.rule for note in one.notes] == ["box cut"]


def test_a_class_list_beside_flat_folders_is_enough(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.jpg")
    write_text(tmp_path / "labels" / "a.txt", "1 0.5 0.5 0.5 0.5\n")
    write_text(tmp_path / "classes.txt", "cup\ntea pot\n")
    (one,) = rows(tmp_path)
    assert one.prefix == "detect " + " ; ".join(CLASSES)
    with pytest.raises(DataError, match=r"no rows for valid, only for train.*--split train"):
        recognise(tmp_path, "valid")


def test_what_is_not_recognised_is_said_with_what_was_looked_for(tmp_path: Path) -> None:
    write_text(tmp_path / "notes.txt", "nothing")
    with pytest.raises(DataError, match=r"JSON lines: train\.jsonl.*COCO: .*YOLO: data\.yaml"):
        recognise(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [a, 'b, c', \"d\"]", ["a", "b, c", "d"]),
        ("names:\n  - a # first\n  - 'it''s'\n", ["a", "it's"]),
        ("names:\n- a\n- no\n", ["a", "no"]),
        ("names:\n  0: person\n  1: traffic light\nnc: 2\n", {"0": "person", "1": "traffic light"}),
        ("names: {0: a, 1: b}", {"0": "a", "1": "b"}),
        ("other:\n  deep:\n    - [1, 2\nnames: [\n  a,\n  b,\n]\n", ["a", "b"]),
    ],
)
def test_class_names_are_read_in_every_form_that_exports_use(
    text: str, names: Any, tmp_path: Path
) -> None:
    assert read_data_yaml(write_text(tmp_path / "d.yaml", text), ("names",)) == {"names": names}


@pytest.mark.parametrize("name", ["café", "🐈 cat", '7 "inch"', "it's", "a: b", "x\ty"])
def test_names_of_classes_come_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    path = write_text(tmp_path / "d.yaml", yolo_names(["cup", name]))
    assert read_data_yaml(path, ("names",)) == {"names": {"0": "cup", "1": name}}
    escaped = f"names: [{json.dumps(name)}]\n"
    found = read_data_yaml(write_text(tmp_path / "e.yaml", escaped), ("names",))
    assert found == {"names": [name]}


@pytest.mark.parametrize(
    "text",
    [
        "names: &all [a]",
        "names: |\n  a\n",
        "names: [a, [b]]",
        "names:\n  - x: 1\n",
        "names: [a\n",
        "names: [a]\nnames: [b]\n",
        "names:\n  0: a\n    1: b\n",
    ],
)
def test_other_yaml_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"d\.yaml, line \d"):
        read_data_yaml(write_text(tmp_path / "d.yaml", text), ("names",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation><size>", "XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type"),
        ("<annotation/>", "size must hold"),
        (
            "<annotation><size><width>9</width><height>9</height></size><object/></annotation>",
            "name",
        ),
    ],
)
def test_a_bad_xml_file_loses_its_picture_and_no_other(
    text: str, words: str, tmp_path: Path
) -> None:
    write_voc(tmp_path, "train", drawn_set(3))
    write_text(tmp_path / "train" / "0.xml", text)
    (said,) = faults(tmp_path)
    assert words in said
    assert "0.xml" in said
    assert len(list(OWN.rows(tmp_path, "train"))) == 3


def test_the_original_layout_of_voc_is_read_by_its_lists(tmp_path: Path) -> None:
    write_voc(tmp_path / "made", "train", drawn_set(3), masks=False)
    made = tmp_path / "made" / "train"
    for k in range(3):
        for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (made / f"{k}.{suffix}").rename(tmp_path / folder / f"{k}.{suffix}")
    write_text(tmp_path / "ImageSets" / "Main" / "train.txt", "2\n0\n")
    write_text(tmp_path / "ImageSets" / "Main" / "val.txt", "1\n")
    assert [Path(one.where).stem for one in rows(tmp_path)] == ["2", "0"]
    assert [one.prefix for one in rows(tmp_path, "valid")] == ["detect cup ; tea pot"]
    rows(tmp_path)[0].pictures[0].read(10**6)


def test_parquet_holds_its_pictures_or_their_names(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    encoded = write_pixels(tmp_path / "a.png", picture(1), orientation=6).read_bytes()
    images = [{"bytes": encoded, "path": None}, {"bytes": None, "path": "a.png"}]
    (tmp_path / "data").mkdir()
    table = pa.table({"image": images, "question": ["how many?"] * 2, "answers": [["2"], []]})
    parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    table = pa.table({"image": [encoded], "caption": ["a cup"]})
    parquet.write_table(table, tmp_path / "validation.parquet")
    first, second = OWN.rows(tmp_path, "train")
    assert isinstance(first, OwnExample)
    assert (first.prefix, first.targets) == ("answer en how many?", ("2",))
    assert first.pictures[0].read(10**6).shape == (SIZE_WH[0], SIZE_WH[1], 3)
    assert isinstance(second, RowError)
    assert "row 2" in str(second)
    (held,) = rows(tmp_path, "valid")
    assert (held.prefix, held.targets) == ("caption en", ("a cup",))
    table = pa.table({"image": ["a.png"], "label": [1]})
    parquet.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(DataError, match="one column must be the answer, suffix"):
        list(OWN.rows(tmp_path, "test"))


def test_a_picture_asks_for_masks_where_all_its_objects_have_them(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", drawn_set(5))
    labels = json.loads(path.read_text())
    labels["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(labels))
    found = rows(tmp_path)
    assert [one.prefix.split()[0] for one in found] == ["detect", "detect", *["segment"] * 3]
    assert [note.rule for note in found[0].notes] == ["no outline"]
    assert "image 0" in found[0].notes[0].said
    assert not found[2].notes
    write_json(tmp_path / "own-format.json", {"masks": False})
    assert {one.prefix.split()[0] for one in rows(tmp_path)} == {"detect"}
    assert not rows(tmp_path)[0].notes


@pytest.mark.parametrize(
    ("database", "stated", "expected"),
    [
        ("The VOC2007 Database", None, [0.0, 0.0, 0.5, 0.25]),
        ("Unknown", None, [0.1, 0.05, 0.5, 0.25]),
        ("Unknown", 1, [0.0, 0.0, 0.5, 0.25]),
        ("The VOC2012 Database", 0, [0.1, 0.05, 0.5, 0.25]),
    ],
)
def test_the_devkits_pixels_count_from_one(
    tmp_path: Path, database: str, stated: int | None, expected: list[float]
) -> None:
    write_pixels(tmp_path / "train" / "a.png", np.zeros((10, 20, 3), np.uint8))
    write_text(
        tmp_path / "train" / "a.xml",
        f"<annotation><filename>a.png</filename><source><database>{database}</database></source>"
        "<size><width>20</width><height>10</height></size><object><name>cup</name><bndbox><xmin>1"
        "</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>",
    )
    if stated is not None:
        write_json(tmp_path / "own-format.json", {"first_pixel": stated})
    (row,) = rows(tmp_path)
    assert list(row.objects[0].box_yxyx) == pytest.approx(expected)


def test_a_first_pixel_that_is_none_is_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", drawn_set(2))
    write_json(tmp_path / "own-format.json", {"first_pixel": 2})
    with pytest.raises(DataError, match=r"first_pixel in own-format\.json must be 0, 1"):
        list(OWN.rows(tmp_path, "train"))


@pytest.mark.parametrize("name", ["valid", "minival", "val", "validation", "validate", "dev"])
def test_held_out_rows_go_by_any_of_their_usual_names(name: str, tmp_path: Path) -> None:
    """A file of rows, folders of LabelMe and the lists of VOC look for the same names."""
    row = {"image": "a.png", "prefix": "answer en what?", "suffix": "a fox"}
    write_picture(tmp_path / "lines" / "a.png")
    write_text(tmp_path / "lines" / f"{name}.jsonl", json.dumps(row))
    assert [one.targets for one in rows(tmp_path / "lines", "valid")] == [("a fox",)]
    # A single file is what is learnt, except under these names.
    with pytest.raises(DataError, match="has no rows for train, only for valid"):
        rows(tmp_path / "lines", "train")
    write_labelme(tmp_path / "labelled", "valid", drawn_set(2))
    (tmp_path / "labelled" / "valid").rename(tmp_path / "labelled" / name)
    assert len(rows(tmp_path / "labelled", "valid")) == 2


def test_absolute_names_of_pictures_are_taken_by_the_end_that_the_folder_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, photos = tmp_path / "data", tmp_path / "photos"
    inside = write_picture(data / "cards" / "1.jpg")
    write_picture(photos / "2.jpg")
    (data / "images").symlink_to(photos)
    names = [str(inside.absolute()), str(photos / "2.jpg"), "C:\\me\\cards\\1.jpg", "/etc/passwd"]
    lines = [{"image": one, "prefix": "ocr", "suffix": "a"} for one in [*names, "../2.jpg"]]
    write_json_lines(data / "train.jsonl", lines)
    found = [one for one in OWN.rows(data, "train") if isinstance(one, OwnExample)]
    assert [one.pictures[0].find() for one in found] == [inside, data / "images/2.jpg", inside]
    elsewhere, above = faults(data)
    assert "row 4 must name a file below the data folder, got '/etc/passwd'" in elsewhere
    assert "let images be a link to it" in elsewhere
    assert "row 5 must name a file below the data folder, got '../2.jpg'" in above
    assert caplog.text.count("names files elsewhere") == 2  # once each time the file is read


def test_a_name_longer_than_files_have_is_a_picture_that_is_missing(tmp_path: Path) -> None:
    write_json_lines(
        tmp_path / "train.jsonl", [{"image": "x" * 5000, "prefix": "ocr", "suffix": "a"}]
    )
    (row,) = OWN.rows(tmp_path, "train")
    assert not isinstance(row, DataError)
    with pytest.raises(ImageError):
        row.pictures[0].read(100)


def test_groups_of_categories_may_be_anything(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", drawn_set(3))
    content = json.loads(path.read_text())
    for one, group in zip(content["categories"], ([1], {"a": 1}, None), strict=False):
        one["supercategory"] = group
    write_json(path, content)
    assert not [one for one in OWN.rows(tmp_path, "train") if isinstance(one, DataError)]
