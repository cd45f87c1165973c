"""MIMIC-CXR and VSR in their official layouts, and their scores."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma.errors import ConfigError, DataError
from paligemma.example import Prediction
from paligemma.metrics.measure import Measure
from paligemma.tasks.captions.mimic import report_sections
from paligemma.tasks.catalog import tasks
from paligemma.tasks.reading.pictures import FilePicture
from paligemma.tasks.task import Task

ROWS: dict[str, Task] = tasks()
MIMIC = ROWS["mimic-cxr"]

DICOMS = [f"{n:08x}-02aa2e5c-5c5ec8a4-4f9dd4ba-cbc3d1a2" for n in range(5)]
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for
 infection

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation.  Note: the
 cardiac silhouette is normal.

 IMPRESSION:

 No acute process.
"""
SPLIT = (
    "dicom_id,study_id,subject_id,split\n"
    f"{DICOMS[0]},50414267,10000032,test\n"
    f"{DICOMS[1]},50414267,10000032,test\n"
    f"{DICOMS[2]},53189527,10000033,train\n"
    f"{DICOMS[3]},53911762,11000034,test\n"
    f"{DICOMS[4]},56699142,11000034,test\n"
)


def _by_name(measures: list[Measure]) -> dict[str, float]:
    return {one.name: one.value for one in measures}


@pytest.fixture
def mimic(tmp_path: Path) -> Path:
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(SPLIT.encode()))
    reports = {
        "p10/p10000032/s50414267": REPORT,
        "p10/p10000033/s53189527": REPORT,
        "p11/p11000034/s53911762": " HISTORY: Cough.\n CONCLUSION: Clear lungs.\n",
        "p11/p11000034/s56699142": " WET READ: none\n",
    }
    for name, text in reports.items():
        path = tmp_path / f"files/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder = tmp_path / "files/p10/p10000032/s50414267"
    folder.mkdir()
    Image.new("L", (6, 4)).save(folder / f"{DICOMS[0]}.jpg")
    return tmp_path


def test_every_picture_of_a_study_asks_with_its_indication(
    mimic: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = list(MIMIC.read(mimic, "test"))
    assert [one.id for one in examples] == [DICOMS[0], DICOMS[1], DICOMS[3]]
    assert examples[0].prefix == "___F with new onset ascites // eval for infection"
    report = (
        "There is no focal consolidation. Note: the cardiac silhouette is normal. No acute process."
    )
    assert examples[0].references == {
        "report": report,
        "study_id": "50414267",
        "graphs": str(mimic / "mimic-cxr-graphs.jsonl"),
    }
    assert examples[0].targets == (report,)
    assert [one.unit for one in examples] == ["10000032", "10000032", "11000034"]
    path = mimic / f"files/p10/p10000032/s50414267/{DICOMS[0]}.jpg"
    assert examples[0].pictures == (FilePicture(path=path),)
    assert examples[0].pictures[0].read(99).shape == (4, 6, 3)
    assert "1 pictures left out" in caplog.text


def test_other_names_of_sections_are_understood(mimic: Path) -> None:
    example = list(MIMIC.read(mimic, "test"))[2]
    assert example.prefix == "Cough."
    assert example.references["report"] == "Clear lungs."


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ("", "", "")),
        ("FINDINGS: a\nIMPRESSION: b", ("", "a", "b")),
        ("INDICATION:\nHISTORY: x\nFINDINGS: Heart: big.\nLUNGS: clear", ("x", "Heart: big.", "")),
        ("IMPRESSION: 1. a\n 2. b\nIMPRESSION: c", ("", "", "1. a\n 2. b\nc")),
        ("INDICATION:x", ("", "", "")),
        ("no headings at all", ("", "", "")),
    ],
)
def test_a_section_goes_from_its_heading_to_the_next(
    text: str, wanted: tuple[str, str, str]
) -> None:
    found = report_sections(text)
    assert (found["indication"], found["findings"], found["impression"]) == wanted


def test_prompt_and_target_are_set_by_a_file_in_the_data_folder(mimic: Path) -> None:
    said = {
        "prompt": "report en {indication}",
        "target": "FINDINGS: {findings} IMPRESSION: {impression}",
        "no_indication": "none given",
    }
    (mimic / "mimic-cxr-format.json").write_text(json.dumps(said))
    (mimic / "files/p11/p11000034/s53911762.txt").write_text("IMPRESSION: {findings} {0}")
    example = list(MIMIC.read(mimic, "test"))[2]
    assert example.prefix == "report en none given"
    assert example.references["report"] == "FINDINGS:  IMPRESSION: {findings} {0}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../../etc/passwd,50414267,10000032,test", "row 2: subject_id and study_id must be"),
        (f"{DICOMS[0]},../1,10000032,test", "row 2"),
        (f"{DICOMS[0]},50414267", "row 2 must have 4 fields"),
        (f"{DICOMS[0]},999,10000032,test", r"s999\.txt cannot be read.*physionet"),
    ],
)
def test_a_wrong_row_of_the_list_is_named(mimic: Path, row: str, message: str) -> None:
    text = f"dicom_id,study_id,subject_id,split\n{row}\n"
    (mimic / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DataError, match=message):
        list(MIMIC.read(mimic, "test"))


def test_the_list_may_be_unpacked_and_needs_its_columns(mimic: Path) -> None:
    (mimic / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(DataError, match=r"split\.csv\.gz or .*physionet"):
        list(MIMIC.read(mimic, "test"))
    (mimic / "mimic-cxr-2.0.0-split.csv").write_text(SPLIT)
    assert len(list(MIMIC.read(mimic, "train"))) == 1
    (mimic / "mimic-cxr-2.0.0-split.csv").write_text("dicom_id,split\n")
    with pytest.raises(DataError, match="study_id, subject_id missing"):
        list(MIMIC.read(mimic, "test"))


def test_perfect_reports_score_one(mimic: Path) -> None:
    pytest.importorskip("paligemma.metrics.caption")
    examples = list(MIMIC.read(mimic, "test"))
    predictions = [Prediction(id=one.id, text=one.references["report"]) for one in examples]
    measures = MIMIC.score(examples, predictions)
    assert measures[0].name == "cider" == MIMIC.headline
    scores = _by_name(measures)
    assert scores["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(1.0)


GRAPH = {"entities": {"1": {"tokens": "lungs", "label": "ANAT-DP", "relations": []}}}
ANSWER = "clear lungs and heart"


def write_graphs(mimic: Path, ids: list[str], **changes: Any) -> None:
    row = {"report": ANSWER, "prediction": GRAPH, "reference": GRAPH, **changes}
    lines = [json.dumps({"id": name, **row}) + "\n" for name in ids]
    (mimic / "mimic-cxr-graphs.jsonl").write_text("".join(lines))


def test_graphs_of_reports_are_compared_where_the_data_folder_has_them(mimic: Path) -> None:
    pytest.importorskip("paligemma.metrics.caption")
    examples = list(MIMIC.read(mimic, "test"))
    said = [Prediction(id=one.id, text=ANSWER) for one in examples]
    assert "radgraph_partial" not in _by_name(MIMIC.score(examples, said))
    write_graphs(mimic, [*DICOMS, "another"])
    scores = _by_name(MIMIC.score(examples, said))
    assert scores["radgraph_partial"] == scores["radgraph_simple"] == 1.0
    assert MIMIC.score(examples[:1], said[:1])[-1].num == 1


@pytest.mark.parametrize(
    ("ids", "changes", "message"),
    [
        (DICOMS[:1], {}, f"2 are missing, the first of {DICOMS[1]}"),
        (DICOMS, {"report": "effusion"}, f"row 1 has the graph of another report of {DICOMS[0]}"),
        (DICOMS, {"reference": []}, "row 1: the field 'reference' must be an object"),
        (DICOMS, {"prediction": {}}, "row 1, prediction: a RadGraph graph needs 'entities'"),
    ],
)
def test_graphs_that_do_not_belong_to_the_answers_are_refused(
    mimic: Path, ids: list[str], changes: dict[str, Any], message: str
) -> None:
    pytest.importorskip("paligemma.metrics.caption")
    examples = list(MIMIC.read(mimic, "test"))
    write_graphs(mimic, ids, **changes)
    with pytest.raises(DataError, match=message):
        MIMIC.score(examples, [Prediction(id=one.id, text=ANSWER) for one in examples])


# VSR

STATEMENTS = [
    {
        "image": "000000119360.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000119360.jpg",
        "caption": "The cat is behind the boat.",
        "label": 0,
        "relation": "behind",
        "annotator_id": 10,
    },
    {"image": "000000080336.jpg", "caption": "The cow is ahead of the person.", "label": 1},
]


@pytest.fixture
def vsr(tmp_path: Path) -> Path:
    path = tmp_path / "splits/zeroshot/test.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in STATEMENTS))
    for name in ("train2017/000000119360.jpg", "val2017/000000080336.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (5, 3)).save(tmp_path / name)
    return tmp_path


def test_statements_are_asked_as_those_of_nlvr2(vsr: Path) -> None:
    task = ROWS["vsr-zeroshot"]
    first, second = task.read(vsr, "test")
    assert (first.id, first.prefix) == ("1", "answer en The cat is behind the boat.")
    assert (first.references, first.targets) == ("False", ("False",))
    assert (second.references, second.slices, first.slices) == ("True", {}, {"relation": "behind"})
    assert first.pictures == (FilePicture(path=vsr / "train2017/000000119360.jpg"),)
    assert second.pictures[0].read(99).shape == (3, 5, 3)
    assert task.asking.max_new_tokens == 18


def test_the_vector_of_vsr_holds(vsr: Path) -> None:
    path = Path(__file__).parents[2] / "metrics/data/metric_vectors.json"
    (vector,) = (
        one for one in json.loads(path.read_text())["vectors"] if one["metric"] == "vsr_accuracy"
    )
    rows = [
        {"image": "a.jpg", "caption": f"{n}", "label": int(reference == "True")}
        for n, reference in enumerate(vector["references"])
    ]
    (vsr / "splits/zeroshot/test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = ROWS["vsr-zeroshot"]
    examples = list(task.read(vsr, "test"))
    predictions = [
        Prediction(id=one.id, text=text)
        for one, text in zip(examples, vector["predictions"], strict=True)
    ]
    (accuracy, *_) = task.score(examples, predictions)
    assert (accuracy.name, accuracy.value) == ("accuracy", vector["expected"]["accuracy"])


def test_the_question_is_set_by_a_file_in_the_data_folder(vsr: Path) -> None:
    said = vsr / "vsr-zeroshot-format.json"
    said.write_text('{"prompt": "answer en Is this true? {caption}"}')
    first = next(iter(ROWS["vsr-zeroshot"].read(vsr, "test")))
    assert first.prefix == "answer en Is this true? The cat is behind the boat."
    said.write_text('{"prompt": "answer en"}')
    with pytest.raises(DataError, match=r"must hold \{caption\}"):
        list(ROWS["vsr-zeroshot"].read(vsr, "test"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": 2}, "row 1: label must be 1"),
        ({"label": None}, "'label' must be a whole number"),
        ({"caption": 3}, "'caption' must be text"),
        ({"image": ["a"]}, "'image' must be text"),
    ],
)
def test_a_wrong_statement_is_named(vsr: Path, changed: dict[str, Any], message: str) -> None:
    (vsr / "splits/zeroshot/test.jsonl").write_text(json.dumps(STATEMENTS[0] | changed))
    with pytest.raises(DataError, match=message):
        list(ROWS["vsr-zeroshot"].read(vsr, "test"))


def test_a_missing_split_of_vsr_is_named(vsr: Path) -> None:
    with pytest.raises(DataError, match=r"splits/random/test\.jsonl.*visual-spatial-reasoning"):
        list(ROWS["vsr-random"].read(vsr, "test"))
    with pytest.raises(ConfigError, match="splits test, dev, train, got 'val'"):
        list(ROWS["vsr-random"].read(vsr, "val"))
