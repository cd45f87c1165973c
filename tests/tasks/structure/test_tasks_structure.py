"""Scene text, tables, molecules and music in their official layouts, and their scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paligemma.errors import DataError, ImageError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.metrics.measure import Measure
from paligemma.tasks.reading.pictures import CroppedPicture, FilePicture, picture_size_hw
from paligemma.tasks.structure.rows import TASKS
from paligemma.tasks.structure.tables import strip_coords
from paligemma.tasks.structure.words import WordFormat, format_words, parse_words
from paligemma.tasks.task import Task

ROWS: dict[str, Task] = {task.name: task for task in TASKS}


def _by_name(measures: list[Measure]) -> dict[str, float]:
    return {one.name: one.value for one in measures}


def _score(task: Task, examples: list[Example], texts: list[str]) -> dict[str, float]:
    predictions = [
        Prediction(id=example.id, text=text) for example, text in zip(examples, texts, strict=True)
    ]
    measures = task.score(examples, predictions)
    assert measures[0].name == task.headline
    return _by_name(measures)


def _picture(path: Path, size_wh: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, (9, 9, 9)).save(path)


def _text(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


# Scene text


@pytest.fixture
def icdar(tmp_path: Path) -> Path:
    for n in (1, 2, 10):
        _picture(tmp_path / f"ch4_test_images/img_{n}.jpg", (1280, 720))
    folder = tmp_path / "Challenge4_Test_Task1_GT"
    rows = (
        "377,117,463,117,465,130,378,130,Genaxis, Inc\r\n493,115,519,115,519,131,493,131,[06]\r\n"
    )
    _text(folder / "gt_img_1.txt", rows, "utf-8-sig")
    _text(folder / "gt_img_2.txt", "0,0,10,0,10,10,0,10,###\n0,20,10,20,10,30,0,30,Ü\n")
    _text(folder / "gt_img_10.txt", "")
    return tmp_path


def test_icdar_words_come_with_commas_marks_and_byte_order(icdar: Path) -> None:
    examples = list(ROWS["icdar15"].read(icdar, "test"))
    assert [one.id for one in examples] == ["img_1", "img_2", "img_10"]
    assert examples[0].prefix == "ocr"
    assert examples[0].references["size_hw"] == [720, 1280]
    assert examples[0].references["words"] == [
        {
            "vertices": [[377.0, 117.0], [463.0, 117.0], [465.0, 130.0], [378.0, 130.0]],
            "text": "Genaxis, Inc",
            "legible": True,
        },
        {
            "vertices": [[493.0, 115.0], [519.0, 115.0], [519.0, 131.0], [493.0, 131.0]],
            "text": "[06]",
            "legible": True,
        },
    ]
    legible = [word["legible"] for word in examples[1].references["words"]]
    assert legible == [False, True]
    assert examples[0].pictures == (FilePicture(path=icdar / "ch4_test_images/img_1.jpg"),)
    json.dumps([one.references for one in examples])


def _boxes_of(example: Example) -> str:
    words = example.references["words"]
    size = np.array([*example.references["size_hw"]] * 2)
    boxes = []
    for word in words:
        low, high = np.min(word["vertices"], axis=0), np.max(word["vertices"], axis=0)
        boxes.append(np.array([low[1], low[0], high[1], high[0]]) / size)
    style = WordFormat(**example.references["style"])
    return format_words([word["text"] for word in words], boxes, style)


def test_perfect_words_score_one_and_an_ignored_one_does_not_count(icdar: Path) -> None:
    task = ROWS["icdar15"]
    examples = list(task.read(icdar, "test"))
    scores = _score(task, examples, [_boxes_of(one) for one in examples])
    for name in ("e2e_f1", "e2e_precision", "e2e_recall", "det_f1", "e2e_f1/upright"):
        assert scores[name] == 1.0
    texts = [_boxes_of(examples[0]).replace("Genaxis", "genaxis"), "", ""]
    scores = _score(task, examples, texts)
    assert scores["det_recall"] == pytest.approx(2 / 3)
    assert scores["e2e_recall"] == pytest.approx(1 / 3)
    assert scores["e2e_precision"] == 0.5


def test_the_layout_of_words_is_set_by_a_file_in_the_data_folder(icdar: Path) -> None:
    said = {"prompt": "read boxes", "text_first": False, "separator": " ; "}
    (icdar / "icdar15-format.json").write_text(json.dumps(said))
    task = ROWS["icdar15"]
    examples = list(task.read(icdar, "test"))
    assert {one.prefix for one in examples} == {"read boxes"}
    text = _boxes_of(examples[0])
    assert text.startswith("<loc0166><loc0301><loc0185><loc0372> Genaxis, Inc ; <loc")
    scores = _score(task, examples, [_boxes_of(one) for one in examples])
    assert scores["e2e_f1"] == 1.0


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"promt": "x"}', "may set prompt, text_first, between, separator, got promt"),
        ('{"text_first": "yes"}', "'text_first' must be true or false"),
        ("[1]", "must be a JSON object"),
        ("{", "must be JSON"),
    ],
)
def test_a_wrong_layout_file_is_named(icdar: Path, said: str, message: str) -> None:
    (icdar / "icdar15-format.json").write_text(said)
    with pytest.raises(DataError, match=message):
        list(ROWS["icdar15"].read(icdar, "test"))


@pytest.mark.parametrize(
    "row", ["1,2,3,4,5,6,7,8", "1,2,3,4,5,6,7,x,word", "nan,2,3,4,5,6,7,8,word", "just words"]
)
def test_a_wrong_line_of_icdar_is_named(icdar: Path, row: str) -> None:
    _text(icdar / "Challenge4_Test_Task1_GT/gt_img_2.txt", f"0,0,1,0,1,1,0,1,ok\n{row}\n")
    with pytest.raises(DataError, match=r"gt_img_2\.txt, row 2 must be x1,y1"):
        list(ROWS["icdar15"].read(icdar, "test"))


def test_missing_files_of_icdar_are_named(icdar: Path) -> None:
    (icdar / "ch4_test_images/img_2.jpg").unlink()
    with pytest.raises(DataError, match=r"no picture 'img_2\.jpg' lies in"):
        list(ROWS["icdar15"].read(icdar, "test"))
    with pytest.raises(DataError, match=r"ch4_training.*rrc\.cvc\.uab\.es"):
        list(ROWS["icdar15"].read(icdar, "train"))


def test_words_given_as_objects_count_as_those_that_a_text_spells(icdar: Path) -> None:
    task = ROWS["icdar15"]
    examples = list(task.read(icdar, "test"))
    objects = []
    for one in examples:
        height, width = one.references["size_hw"]
        found = []
        for word in one.references["words"]:
            if word["legible"]:
                x, y = zip(*word["vertices"], strict=True)
                box = (min(y) / height, min(x) / width, max(y) / height, max(x) / width)
                found.append(FoundObject(label=word["text"], box_yxyx=box))
        objects.append(tuple(found))
    said = [
        Prediction(id=one.id, text="", objects=found)
        for one, found in zip(examples, objects, strict=True)
    ]
    figures = {one.name: one.value for one in task.score(examples, said)}
    assert (figures["e2e_f1/upright"], figures["det_recall/upright"]) == (1.0, 1.0)
    wrong = [replace(one, text="no <loc0001><loc0001><loc0002><loc0002>") for one in said]
    assert {one.name: one.value for one in task.score(examples, wrong)}["det_f1/upright"] == 0.0


TOTAL_TEXT = """x: [[115 503 494
  115]], y: [[322 346 426 404]], ornt: [u'm'], transcriptions: [u'nauGHTY']
x: [[734 1058 1061]], y: [[360 369 449]], ornt: [u'h'], transcriptions: [u"it's"]
x: [[545 621 614]], y: [[409 389 398]], ornt: [u'#'], transcriptions: [u'#']
x: [[5 6 6]], y: [[4 3 9]], ornt: [u'c'], transcriptions: [u'caf\\xe9']
"""


@pytest.fixture
def total_text(tmp_path: Path) -> Path:
    _text(tmp_path / "txt_format/Test/poly_gt_img1.txt", TOTAL_TEXT)
    _picture(tmp_path / "Images/Test/img1.jpg", (1200, 700))
    return tmp_path


def test_total_text_outlines_may_wrap_and_have_any_number_of_corners(total_text: Path) -> None:
    (example,) = ROWS["total-text"].read(total_text, "test")
    words = example.references["words"]
    assert [word["text"] for word in words] == ["nauGHTY", "it's", "#", "café"]
    assert [word["legible"] for word in words] == [True, True, False, True]
    assert words[0]["vertices"] == [[115, 322], [503, 346], [494, 426], [115, 404]]
    assert len(words[1]["vertices"]) == 3
    assert (example.id, example.pictures[0]) == (
        "img1",
        FilePicture(path=total_text / "Images/Test/img1.jpg"),
    )
    upright = _score(ROWS["total-text"], [example], [_boxes_of(example)])
    assert upright["e2e_f1/upright"] == 1.0
    assert upright["e2e_f1"] < 1.0  # three corners fill half of their box


def test_training_words_are_written_with_their_boxes(total_text: Path) -> None:
    (total_text / "txt_format/Test").rename(total_text / "txt_format/Train")
    (total_text / "Images/Test").rename(total_text / "Images/Train")
    (example,) = ROWS["total-text"].read(total_text, "train")
    assert example.targets[0].startswith("nauGHTY <loc0471><loc0098><loc0623><loc0429> it's <loc")
    assert "#" not in example.targets[0]


def test_ground_truth_of_matlab_is_refused_with_a_remedy(total_text: Path) -> None:
    (total_text / "txt_format/Test/poly_gt_img1.txt").unlink()
    _text(total_text / "Groundtruth/Polygon/Test/poly_gt_img1.mat", "MATLAB 5.0")
    with pytest.raises(DataError, match=r"poly_gt_img1\.mat.*MATLAB.*txt_format"):
        list(ROWS["total-text"].read(total_text, "test"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: [[1 2 3]], y: [[1 2]], ornt: [u'c'], transcriptions: [u'a']", "got 3 x and 2 y"),
        ("x: [[1 2 3]], y: [[1 2 b]], ornt: [u'c'], transcriptions: [u'a']", "must be numbers"),
        ("x: [[1 2 3]], y: [[1 2 inf]], ornt: [u'c'], transcriptions: [u'a']", "must be finite"),
        ("x: [[1 2 3]], y: [[1 2 3]], transcriptions: [u'a']", "only 0 of them"),
        ("x: [[1 2 3]], y: [[1 2 3]], ornt: [], transcriptions: [u'\\x']", "cannot be read"),
        ("x: [[1 2 3]], y: [[1 2 3]], ornt: [], transcriptions: [exit()]", "only 0 of them"),
    ],
)
def test_a_wrong_record_of_total_text_is_named(total_text: Path, text: str, message: str) -> None:
    _text(total_text / "txt_format/Test/poly_gt_img1.txt", text)
    with pytest.raises(DataError, match=message):
        list(ROWS["total-text"].read(total_text, "test"))


_WORD = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_characters="<>"),
    min_size=1,
    max_size=6,
).filter(lambda word: word.strip() == word)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(_WORD, max_size=5),
    st.booleans(),
    st.sampled_from([" ", " ; ", "", "\n"]),
)
def test_words_come_back_as_they_were_written(words: list[str], first: bool, sep: str) -> None:
    style = WordFormat(text_first=first, separator=sep)
    text = format_words(words, [(0.0, 0.25, 0.5, 1.0)] * len(words), style)
    if any(word.endswith(sep.strip()) or word.startswith(sep.strip()) for word in words) and (
        sep.strip()
    ):
        return
    assert parse_words(text, style) == [(word, (0, 256, 512, 1023)) for word in words]


def test_text_without_a_whole_box_is_passed_over() -> None:
    style = WordFormat()
    box = "<loc0001><loc0002><loc0003><loc0004>"
    assert parse_words(f"A {box} B <loc0001><loc0002>", style) == [("A", (1, 2, 3, 4))]
    assert parse_words("A <loc1024><loc0002><loc0003><loc0004>", style) == []
    assert parse_words("", style) == []
    boxes_first = WordFormat(text_first=False)
    assert parse_words(f"A {box} B {box[:18]}", boxes_first) == [
        ("B <loc0001><loc0002>", (1, 2, 3, 4))
    ]
    assert parse_words("", boxes_first) == []


def test_answers_that_never_end_are_read_in_a_moment() -> None:
    # Both take seconds where a pattern starts anew at each character.
    assert parse_words("a" * 300_000, WordFormat()) == []
    assert strip_coords("<td" + " " * 300_000 + ">").startswith("<td ")


# Tables

STRUCTURE = [
    *("<thead>", "<tr>", "<td", ' colspan="2"', ">", "</td>", "</tr>", "</thead>"),
    *("<tbody>", "<tr>", "<td>", "</td>", "<td>", "</td>", "</tr>", "</tbody>"),
]
CELLS: list[dict[str, Any]] = [
    {"tokens": ["<b>", "A", "&", "B", "</b>"], "bbox": [10, 5, 40, 10]},
    {"tokens": ["1"], "bbox": [0, 20, 20, 40]},
    {"tokens": []},
]
TABLE = (
    '<table><thead><tr><td colspan="2"><b>A&amp;B</b></td></tr></thead>'
    "<tbody><tr><td>1</td><td></td></tr></tbody></table>"
)


def _table_row(**more: Any) -> dict[str, Any]:
    return {
        "filename": "PMC1.png",
        "split": "val",
        "imgid": 548625,
        "html": {"cells": CELLS, "structure": {"tokens": STRUCTURE}},
        **more,
    }


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def pubtabnet(tmp_path: Path) -> Path:
    rows = [
        _table_row(),
        _table_row(split="train", filename="PMC2.png", imgid=7),
        _table_row(split="test", html=None),
    ]
    _lines(tmp_path / "pubtabnet/PubTabNet_2.0.0.jsonl", rows)
    for split, name in (("val", "PMC1"), ("train", "PMC2")):
        _picture(tmp_path / f"pubtabnet/{split}/{name}.png", (80, 50))
    return tmp_path


def test_cells_are_filled_into_the_structure_in_order(pubtabnet: Path) -> None:
    (example,) = ROWS["pubtabnet"].read(pubtabnet, "val")
    assert (example.id, example.prefix) == ("548625", "table")
    assert example.references == {"html": TABLE}
    assert example.pictures == (FilePicture(path=pubtabnet / "pubtabnet/val/PMC1.png"),)
    assert ROWS["pubtabnet"].asking.pad_to_square
    assert ROWS["pubtabnet"].asking.max_new_tokens == 4096


def test_training_tables_say_where_their_cells_are(pubtabnet: Path) -> None:
    (example,) = ROWS["pubtabnet"].read(pubtabnet, "train")
    # 80 pixels are the side of the padded square: 10 of 80 is bin 128, 5 of 80 is 64.
    head = '<td colspan="2" coords="<loc0128><loc0064><loc0512><loc0128>"><b>A&amp;B</b></td>'
    body = '<td coords="<loc0000><loc0256><loc0256><loc0512>">1</td><td></td>'
    assert head in example.targets[0]
    assert body in example.targets[0]
    assert strip_coords(example.targets[0]) == TABLE
    said = {"coords_order": "y0 x0 y1 x1"}
    (pubtabnet / "pubtabnet-format.json").write_text(json.dumps(said))
    (example,) = ROWS["pubtabnet"].read(pubtabnet, "train")
    assert "<loc0064><loc0128><loc0128><loc0512>" in example.targets[0]


def test_a_perfect_table_scores_one_with_and_without_places(pubtabnet: Path) -> None:
    task = ROWS["pubtabnet"]
    (example,) = task.read(pubtabnet, "val")
    with_places = TABLE.replace("<td>1", '<td coords="<loc0000><loc0001><loc0002><loc0003>">1')
    for text in (TABLE, with_places, f"<html><body>{with_places}</body></html>"):
        scores = _score(task, [example], [text])
        for name in ("teds", "s_teds", "grits_top", "grits_con"):
            assert scores[name] == pytest.approx(1.0, abs=1e-12)
    scores = _score(task, [example], [TABLE.replace(">1<", ">2<")])
    assert scores["s_teds"] == 1.0
    assert scores["grits_top"] == 1.0
    assert scores["teds"] < 1.0
    assert scores["grits_con"] < 1.0
    scores = _score(task, [example], [""])
    assert (scores["teds"], scores["grits_top"]) == (0.0, 0.0)


def test_a_true_table_with_an_unclosed_tag_is_still_compared(pubtabnet: Path) -> None:
    cells = [{"tokens": ["<sup>", "a"]}, *CELLS[1:]]
    row = _table_row(html={"cells": cells, "structure": {"tokens": STRUCTURE}})
    _lines(pubtabnet / "pubtabnet/PubTabNet_2.0.0.jsonl", [row])
    task = ROWS["pubtabnet"]
    (example,) = task.read(pubtabnet, "val")
    scores = _score(task, [example], [example.references["html"].replace("</td></tr></thead>", "")])
    assert 0 <= scores["grits_top"] <= 1
    scores = _score(task, [example], [example.references["html"]])
    assert scores["teds"] == 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"filename": "../x.png"}, "filename must name"),
        ({"html": {"cells": CELLS}}, "row 1 .*'structure'"),
        ({"html": {"cells": [{}], "structure": {"tokens": []}}}, "'tokens'"),
        ({"html": {"cells": [{"tokens": [], "bbox": [1]}], "structure": {"tokens": []}}}, "bbox"),
        ({"imgid": None}, "imgid"),
    ],
)
def test_a_wrong_table_row_is_named(pubtabnet: Path, changed: dict[str, Any], message: str) -> None:
    _lines(pubtabnet / "pubtabnet/PubTabNet_2.0.0.jsonl", [_table_row(**changed)])
    with pytest.raises(DataError, match=message):
        list(ROWS["pubtabnet"].read(pubtabnet, "val"))


def test_a_training_table_whose_contents_do_not_fit_is_left_out(pubtabnet: Path) -> None:
    short = {"cells": CELLS[:1], "structure": {"tokens": STRUCTURE}}
    rows = [_table_row(html=short), _table_row(html=short, split="train")]
    _lines(pubtabnet / "pubtabnet/PubTabNet_2.0.0.jsonl", rows)
    assert list(ROWS["pubtabnet"].read(pubtabnet, "train")) == []
    (example,) = ROWS["pubtabnet"].read(pubtabnet, "val")
    assert example.references["html"].count("<td></td>") == 2


@pytest.fixture
def fintabnet(tmp_path: Path) -> Path:
    """One page of 100 x 200 points at 144 pixels an inch, a table in its upper half."""
    cells = [
        {"tokens": ["$", "5"], "bbox": [20, 160, 40, 180]},
        {"tokens": ["x"], "bbox": [40, 160, 60, 180]},
    ]
    structure = ["<tr>", "<td>", "</td>", "<td>", "</td>", "</tr>"]
    row = {
        "filename": "ADS/2007/page_76.pdf",
        "split": "test",
        "table_id": 110961,
        "bbox": [20, 120, 60, 180],
        "html": {"cells": cells, "structure": {"tokens": structure}},
    }
    _lines(tmp_path / "FinTabNet_1.0.0_cell_test.jsonl", [row])
    _lines(tmp_path / "FinTabNet_1.0.0_cell_train.jsonl", [{**row, "split": "train"}])
    page = Image.new("RGB", (200, 400), "white")
    page.paste((255, 0, 0), (40, 40, 120, 160))
    path = tmp_path / "pages/ADS/2007/page_76.png"
    path.parent.mkdir(parents=True)
    page.save(path)
    return tmp_path


def test_boxes_of_fintabnet_are_turned_from_the_bottom_of_the_page(fintabnet: Path) -> None:
    (example,) = ROWS["fintabnet"].read(fintabnet, "test")
    assert example.id == "110961"
    assert example.references == {"html": "<table><tr><td>$5</td><td>x</td></tr></table>"}
    shown = example.pictures[0].read(10**6)
    assert shown.shape == (120, 80, 3)
    assert (shown == (255, 0, 0)).all()  # exactly the table, no white of the page
    (example,) = ROWS["fintabnet"].read(fintabnet, "train")
    # The first cell covers 0..40 x 0..40 of a square of 120 pixels.
    assert '<td coords="<loc0000><loc0000><loc0341><loc0341>">$5</td>' in example.targets[0]


def test_pages_at_another_resolution_are_noticed_or_stated(fintabnet: Path) -> None:
    said = fintabnet / "fintabnet-format.json"
    said.write_text('{"page_dpi": 300}')
    with pytest.raises(DataError, match=r"200x400 pixels at 300 an inch.*page_dpi"):
        list(ROWS["fintabnet"].read(fintabnet, "test"))
    said.write_text('{"page_dpi": 3}')
    with pytest.raises(DataError, match=r"page_dpi must lie in 18\.\.1200"):
        list(ROWS["fintabnet"].read(fintabnet, "test"))
    said.write_text('{"coords_order": "x0 y0 x1 x1"}')
    with pytest.raises(DataError, match="coords_order must name"):
        list(ROWS["fintabnet"].read(fintabnet, "test"))


def test_a_cut_that_leaves_its_picture_is_an_error(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", (8, 4))
    assert CroppedPicture(path=tmp_path / "a.png", box_xyxy_px=(2, 1, 8, 4)).read(99).shape == (
        *(3, 6, 3),
    )
    with pytest.raises(ImageError, match="8x4 pixels"):
        CroppedPicture(path=tmp_path / "a.png", box_xyxy_px=(2, 1, 9, 4)).read(99)


def test_the_size_of_a_picture_is_that_of_its_stored_pixels(tmp_path: Path) -> None:
    picture, exif = Image.new("RGB", (8, 4)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    crop = CroppedPicture(path=tmp_path / "a.jpg", box_xyxy_px=(0, 0, 8, 4))
    assert picture_size_hw(tmp_path / "a.jpg") == crop.read(99).shape[:2] == (4, 8)


# Molecules


@pytest.fixture
def molecules(tmp_path: Path) -> Path:
    rows = "image_id,file_path,SMILES\n1,synthetic/chemdraw/1.png,CCO\n2,synthetic/chemdraw/2.png,"
    _text(tmp_path / "synthetic/chemdraw.csv", rows + '"C1=CC=CC=C1"\n')
    for n in (1, 2):
        _picture(tmp_path / f"synthetic/chemdraw/{n}.png", (5, 5))
    return tmp_path


def test_molecules_are_read_and_other_spellings_match(molecules: Path) -> None:
    task = ROWS["molecules"]
    examples = list(task.read(molecules, "test"))
    assert [(one.id, one.references) for one in examples] == [("1", "CCO"), ("2", "C1=CC=CC=C1")]
    assert {one.prefix for one in examples} == {"smiles"}
    assert examples[0].pictures == (FilePicture(path=molecules / "synthetic/chemdraw/1.png"),)
    assert _score(task, examples, ["OCC", "c1ccccc1"])["full_match"] == 1.0
    assert _score(task, examples, ["OCC", ""])["full_match"] == 0.5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file_path,smiles\n", "SMILES missing"),
        ("file_path,SMILES\nsynthetic/chemdraw/9.png,C\n", "must lie in one of"),
        ("file_path,SMILES\n../1.png,C\n", "row 2 must name a file below"),
        ("file_path,SMILES\nsynthetic/chemdraw/1.png,\n", "row 2: SMILES must name a molecule"),
    ],
)
def test_a_wrong_list_of_molecules_is_named(molecules: Path, rows: str, message: str) -> None:
    _text(molecules / "synthetic/chemdraw.csv", rows)
    with pytest.raises(DataError, match=message):
        list(ROWS["molecules"].read(molecules, "test"))


# Music

KERN = "**kern\t**kern\n*clefF4\t*clefG2\n=1\t=1\n4C\t4e 4g\n*-\t*-\n"


@pytest.fixture
def grandstaff(tmp_path: Path) -> Path:
    names = ("beethoven/sonata01/original_m-0-5", "chopin/op17/min3_up_m-1-2")
    _text(
        tmp_path / "partitions_grandstaff/types/test.txt",
        "".join(f"Data/GrandStaff/{name}.bekrn\n" for name in names),
    )
    for name in names:
        _text(tmp_path / f"grandstaff/{name}.krn", KERN)
        _text(tmp_path / f"grandstaff/{name}.bekrn", KERN.replace("4C", "4@·C"))
        _picture(tmp_path / f"grandstaff/{name}.jpg", (60, 20))
        _picture(tmp_path / f"grandstaff/{name}_distorted.jpg", (50, 20))
    return tmp_path


def test_scores_are_found_from_lists_that_begin_in_another_folder(grandstaff: Path) -> None:
    task = ROWS["grandstaff"]
    examples = list(task.read(grandstaff, "test"))
    assert [one.id for one in examples] == [
        "beethoven/sonata01/original_m-0-5",
        "chopin/op17/min3_up_m-1-2",
    ]
    assert [one.slices["composer"] for one in examples] == ["beethoven", "chopin"]
    clean = "**kern\t**kern\n*clefF4\t*clefG2\n=\t=\n4C\t4e 4g\n*-\t*-"
    assert examples[0].references == {"kern": clean, "clean": True}
    assert examples[0].pictures[0].read(9999).shape == (20, 60, 3)
    # Bar numbers are no error, since they are taken out on both sides.
    for text in (clean, KERN):
        scores = _score(task, examples, [text, text])
        assert (scores["cer"], scores["ser"], scores["ler"]) == (0.0, 0.0, 0.0)
        assert scores["cer_without_spaces"] == 0.0
    scores = _score(task, examples, [clean, clean.replace("4e 4g", "4e4g")])
    assert scores["cer_without_spaces"] == 0.0
    assert scores["cer"] == pytest.approx(1 / (2 * len(clean)))
    assert scores["ler"] == pytest.approx(1 / 10)


def test_other_transcriptions_and_pictures_are_set_by_a_file(grandstaff: Path) -> None:
    said = {"ending": ".bekrn", "clean": False, "distorted": True, "prompt": "music"}
    (grandstaff / "grandstaff-format.json").write_text(json.dumps(said))
    example = next(iter(ROWS["grandstaff"].read(grandstaff, "test")))
    assert example.references == {"kern": KERN, "clean": False}
    assert example.pictures[0].read(9999).shape == (20, 50, 3)
    assert example.prefix == "music"
    (grandstaff / "grandstaff-format.json").write_text('{"ending": ".xml"}')
    with pytest.raises(DataError, match=r"ending must be \.krn or \.bekrn"):
        list(ROWS["grandstaff"].read(grandstaff, "test"))


def test_missing_scores_are_named(grandstaff: Path) -> None:
    (grandstaff / "grandstaff/chopin/op17/min3_up_m-1-2.krn").unlink()
    with pytest.raises(DataError, match=r"min3_up_m-1-2\.krn cannot be read"):
        list(ROWS["grandstaff"].read(grandstaff, "test"))
    (grandstaff / "grandstaff").rename(grandstaff / "elsewhere")
    with pytest.raises(DataError, match="must lie below"):
        list(ROWS["grandstaff"].read(grandstaff, "test"))
    with pytest.raises(DataError, match=r"types/val\.txt"):
        list(ROWS["grandstaff"].read(grandstaff, "val"))
