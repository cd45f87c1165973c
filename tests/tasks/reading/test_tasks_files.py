"""Reading official dataset files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from task_files import write_csv, write_json, write_json_lines, write_pixels, write_text

from paligemma.errors import DataError, ImageError
from paligemma.tasks.reading import files
from paligemma.tasks.reading.coco import coco_id
from paligemma.tasks.reading.file_rows import (
    FileRow,
    read_csv,
    read_json_lines,
    read_list,
    whole_number,
)
from paligemma.tasks.reading.files import find_file, read_json
from paligemma.tasks.reading.pictures import FilePicture


def test_the_first_place_that_exists_is_taken(tmp_path: Path) -> None:
    write_text(tmp_path / "b" / "x.json", "{}")
    assert find_file(tmp_path, "a/x.json", "b/x.json", source="somewhere") == tmp_path / "b/x.json"


def test_a_missing_file_is_named_with_all_places_and_its_source(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"a/x.json or b/x.json, which comes from the moon"
    ) as error:
        find_file(tmp_path, "a/x.json", "b/x.json", source="the moon")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2"])
def test_json_lines_are_numbered_whatever_the_compression(tmp_path: Path, ending: str) -> None:
    path = write_json_lines(tmp_path / f"x.jsonl{ending}", [{"a": 1}, {"a": "ü"}])
    assert [(one.number, one.fields) for one in read_json_lines(path)] == [
        (1, {"a": 1}),
        (2, {"a": "ü"}),
    ]


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = write_text(tmp_path / "x.jsonl", '\ufeff{"a": 1}\n\n{"a": 2}\n')
    assert [one.number for one in read_json_lines(path)] == [1, 3]


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "nul"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    path = write_text(tmp_path / "x.jsonl", '{"a": 1}\n' + line)
    with pytest.raises(DataError, match=r"x.jsonl, row 2 must be"):
        list(read_json_lines(path))


def test_a_line_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    path = write_text(tmp_path / "x.jsonl", '{"a": 1}\n{"a": "long enough"}\n')
    with pytest.raises(DataError, match="row 2 goes beyond"):
        list(read_json_lines(path))


def test_a_json_file_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    assert read_json(write_json(tmp_path / "short.json", [1, 2])) == [1, 2]
    with pytest.raises(DataError, match="may have 10 bytes"):
        read_json(write_json(tmp_path / "long.json", list(range(9))))


@pytest.mark.parametrize("name", ["gone.json", "gone.json.gz", "gone.json.bz2"])
def test_a_json_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"gone\.json"):
        read_json(tmp_path / name)


def test_json_that_is_torn_damaged_or_deep_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"torn.json must be JSON.*take the whole file again"):
        read_json(write_text(tmp_path / "torn.json", '{"a": '))
    with pytest.raises(DataError, match=r"deep.json must be JSON"):
        read_json(write_text(tmp_path / "deep.json", "[" * 100_000))
    path = tmp_path / "damaged.json.gz"
    path.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"damaged.json.gz cannot be read"):
        read_json(path)


def test_a_table_is_read_by_its_heading(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", ["id", "text"], [[1, "a, b"], [2, 'say "c"']])
    assert [(one.number, one.fields) for one in read_csv(path, ["id", "text"])] == [
        (2, {"id": "1", "text": "a, b"}),
        (3, {"id": "2", "text": 'say "c"'}),
    ]


def test_a_table_without_a_column_or_a_field_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", ["id", "text"], [[1, "a"], [2]])
    with pytest.raises(DataError, match=r"x.csv must have the columns id, label; label missing"):
        list(read_csv(path, ["id", "label"]))
    with pytest.raises(DataError, match=r"x.csv, row 3 must have 2 fields"):
        list(read_csv(path, ["id"]))
    with pytest.raises(DataError, match=r"gone.csv cannot be read as a table"):
        list(read_csv(tmp_path / "gone.csv", ["id"]))


def test_a_field_has_the_wanted_type() -> None:
    row = FileRow({"n": 3, "s": "4", "x": 1.5, "b": True, "l": ["a"], "o": {"n": 5}}, "f")
    assert row.integer("n") == 3
    assert row.integer("s") == 4
    assert row.text("s") == "4"
    assert row.value("n", float) == 3.0
    assert row.value("b", bool) is True
    assert row.value("l", list) == ["a"]
    assert row.identifier("n") == "3"
    assert row.identifier("s") == "4"
    assert row.texts("l") == ["a"]
    assert row.object("o").integer("n") == 5


@pytest.mark.parametrize(
    ("field", "kind", "message"),
    [
        ("gone", str, r"f, row 2 must be an object with the field 'gone', it has 'b, n, s, x, u'"),
        ("b", int, r"f, row 2: the field 'b' must be a whole number, got True"),
        ("n", bool, r"the field 'n' must be true or false, got 1"),
        ("s", int, r"the field 's' must be a whole number, got 'four'"),
        ("u", int, r"the field 'u' must be a whole number, got '1_000'"),
        ("x", float, r"the field 'x' must be a number, got nan"),
        ("n", str, r"the field 'n' must be text, got 1"),
        ("s", dict, r"the field 's' must be an object, got 'four'"),
    ],
)
def test_a_wrong_field_is_named_with_file_row_and_value(
    field: str, kind: type, message: str
) -> None:
    row = {"b": True, "n": 1, "s": "four", "x": float("nan"), "u": "1_000"}
    with pytest.raises(DataError, match=message):
        FileRow(row, "f, row 2").value(field, kind)


def test_a_wrong_element_and_a_row_that_is_no_object_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the field 'l' must be text, got 1"):
        FileRow({"l": ["a", 1]}, "f").texts("l")
    with pytest.raises(DataError, match="the field 'l' must be an object, got 1"):
        FileRow({"l": [1]}, "f").objects("l")
    with pytest.raises(DataError, match=r"x\.json, row 1 must be a JSON object, got \[1\]"):
        list(read_list(write_json(tmp_path / "x.json", [{}, [1]])))


@pytest.mark.parametrize(
    ("orientation", "size_hw", "shape"),
    [
        (6, None, (2, 3)),
        (6, (2, 3), (2, 3)),
        (6, (3, 2), (3, 2)),
        (6, (5, 4), (2, 3)),
        (3, (3, 2), (2, 3)),
    ],
)
def test_a_picture_is_as_stored_unless_only_its_exif_turn_gives_the_stated_size(
    tmp_path: Path, orientation: int, size_hw: tuple[int, int] | None, shape: tuple[int, int]
) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    path = write_pixels(tmp_path / "x.png", pixels, orientation=orientation)
    found = FilePicture(path=path, size_hw=size_hw).read(100)
    assert found.shape[:2] == shape
    assert np.array_equal(found, pixels if shape == (2, 3) else np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "value",
    ["1" + "0" * 30, "-1" + "0" * 30, "1" * 400, "1e400", "NaN", "Infinity", "1.5", '"9e99"'],
)
def test_a_whole_number_beyond_all_ids_is_named_with_its_row(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"n": 1}}, {{"n": {value}}}]')
    first, second = read_list(path)
    assert first.integer("n") == 1
    with pytest.raises(DataError, match=r"rows.json, row 1: the field 'n' must be a whole number"):
        second.integer("n")


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("depth", [600, 200_000])
def test_json_nested_without_end_is_refused(tmp_path: Path, opening: str, depth: int) -> None:
    for name in ("rows.json", "rows.jsonl"):
        path = tmp_path / name
        path.write_text(opening * depth)
        with pytest.raises(DataError, match=name):
            list(read_list(path) if name == "rows.json" else read_json_lines(path))


def test_a_picture_is_turned_upright_and_travels(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 2] = 255
    path = write_pixels(tmp_path / "x.png", pixels)
    picture = pickle.loads(pickle.dumps(FilePicture(path=path, quarter_turns=1)))
    turned = picture.read(100)
    # Counter-clockwise: the right upper corner becomes the left upper one.
    assert turned.shape == (3, 2, 3)
    assert turned[0, 0].tolist() == [255, 255, 255]
    with pytest.raises(ImageError, match="may have 5 pixels"):
        picture.read(5)
    with pytest.raises(ImageError, match=r"no picture 'gone\.png' lies in"):
        FilePicture(path=tmp_path / "gone.png").read(100)


def test_digits_are_a_number_up_to_the_length_of_ids() -> None:
    assert [whole_number(text) for text in ("007", "9" * 19, "9" * 5000, "1_0", "²", "")] == [
        *(7, int("9" * 19), None, None, None, None)
    ]


@pytest.mark.parametrize("text", ["9" * 5000, "None", "007", "7"])
def test_an_id_of_coco_may_be_any_text(text: str) -> None:
    assert coco_id(FileRow({"id": text}, "here"), "id") == (7 if text == "7" else text)


def test_a_place_longer_than_names_are_holds_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold xxx"):
        find_file(tmp_path, "x" * 5000, source="there")
