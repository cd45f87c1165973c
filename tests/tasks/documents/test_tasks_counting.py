"""TallyQA and CountBenchQA: files, number words, and which pictures are left."""

from __future__ import annotations

import io
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from task_files import write_json, write_json_lines, write_picture

from paligemma.errors import DataError, ImageError, MissingExtraError
from paligemma.example import Prediction
from paligemma.tasks.documents.counting import ParquetPicture, read_countbenchqa, read_tallyqa
from paligemma.tasks.documents.rows import TASKS
from paligemma.tasks.task import Task

ROWS: dict[str, Task] = {task.name: task for task in TASKS}


def _tallyqa(data: Path, **row: Any) -> Path:
    base = {
        "image": "VG_100K_2/2410408.jpg",
        "image_id": 92410408,
        "question": "How many dogs?",
        "question_id": 30015,
        "answer": 2,
        "data_source": "imported_genome",
        "issimple": True,
    }
    row = {name: one for name, one in {**base, **row}.items() if one is not ...}
    second = {**base, "question_id": 30016, "answer": 0, "issimple": False}
    write_json(data / "test.json", [row, second])
    write_picture(data / "VG_100K_2/2410408.jpg", size_wh=(5, 4))
    return data


def test_tallyqa_tells_simple_questions_from_complex_ones(tmp_path: Path) -> None:
    examples = list(read_tallyqa(_tallyqa(tmp_path), "test"))
    assert [one.id for one in examples] == ["92410408/30015", "92410408/30016"]
    assert examples[0].prefix == "answer en How many dogs?"
    assert [one.references for one in examples] == ["2", "0"]
    assert [one.slices["complexity"] for one in examples] == ["simple", "complex"]
    assert examples[0].pictures[0].read(1000).shape == (4, 5, 3)
    said = [
        Prediction(id=one.id, text=text) for one, text in zip(examples, ("two", "1"), strict=True)
    ]
    measures = {one.name: one.value for one in ROWS["tallyqa"].score(examples, said)}
    assert list(measures)[:3] == ["accuracy/simple", "accuracy/complex", "accuracy"]
    assert measures["accuracy/simple"] == 1.0
    assert measures["accuracy/complex"] == 0.0
    assert {key.measure for key in ROWS["tallyqa"].published} <= set(measures)
    said = [Prediction(id=one.id, text=one.references) for one in examples]
    perfect = ROWS["tallyqa"].score(examples, said)
    assert {one.value * one.scale for one in perfect} == {100.0}


def test_training_questions_need_no_complexity(tmp_path: Path) -> None:
    row = {
        "image": "train2014/COCO_train2014_1.jpg",
        "image_id": 1,
        "question": "How many?",
        "question_id": 1,
        "answer": "15",
    }
    write_json(tmp_path / "train.json", [row])
    (example,) = read_tallyqa(tmp_path, "train")
    assert example.targets == ("15",)
    measures = ROWS["tallyqa"].score([example], [Prediction(id=example.id, text="fifteen")])
    assert measures[0].value == 1.0
    assert "accuracy/simple" not in {one.name for one in measures}


@pytest.mark.parametrize("field", ["image", "image_id", "question", "question_id", "answer"])
def test_a_missing_tallyqa_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(DataError, match=rf"test.json, row 0.*{field}"):
        list(read_tallyqa(_tallyqa(tmp_path, **{field: ...}), "test"))


@pytest.mark.parametrize("answer", [-1, 1.5, "two", None])
def test_an_answer_must_be_a_whole_number(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(DataError, match="answer must be a whole number"):
        list(read_tallyqa(_tallyqa(tmp_path, answer=answer), "test"))


def _encoded(mode: str, size_wh: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size_wh, 7).save(file, "PNG")
    return file.getvalue()


def _countbench(data: Path, *, num_questions: int = 4) -> Path:
    """Rows: a picture, none, a grey one, a picture; two row groups of two."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [
        {"bytes": _encoded("RGB", (5, 3)), "path": None},
        None,
        {"bytes": _encoded("L", (4, 4)), "path": None},
        {"bytes": _encoded("RGB", (6, 2)), "path": None},
    ]
    table = pa.table(
        {
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "text": ["ten things"] * 4,
            "number": [10, 2, 3, 4],
        }
    )
    pq.write_table(table, data / "train-00000-of-00001-cf54c241ba947306.parquet", row_group_size=2)
    questions = [{"question": f"How many of kind {k}?"} for k in range(num_questions)]
    write_json(data / "countbench_paired_questions.json", questions)
    return data


def test_countbench_keeps_rows_with_a_colour_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    examples = list(read_countbenchqa(_countbench(tmp_path), "all"))
    assert [one.id for one in examples] == ["0", "3"]
    assert [one.prefix for one in examples] == [
        "answer en How many of kind 0?",
        "answer en How many of kind 3?",
    ]
    assert [one.references for one in examples] == ["10", "4"]
    assert "2 of 4 rows have a usable picture" in caplog.text
    pictures = [pickle.loads(pickle.dumps(one.pictures[0])) for one in examples]
    assert [one.read(1000).shape for one in pictures] == [(3, 5, 3), (2, 6, 3)]
    said = [Prediction(id="0", text="ten"), Prediction(id="3", text="4")]
    measure = ROWS["countbenchqa"].score(examples, said)[0]
    assert (measure.name, measure.value, measure.num) == ("accuracy", 1.0, 2)


def test_a_parquet_row_without_picture_is_an_image_error(tmp_path: Path) -> None:
    (path,) = _countbench(tmp_path).glob("*.parquet")
    with pytest.raises(ImageError, match="has no image"):
        ParquetPicture(path=path, row_group=0, row=1).read(1000)


def test_countbench_rows_may_come_as_json_lines(tmp_path: Path) -> None:
    rows = [{"image": "images/0.png", "number": 10}, {"image": None, "number": 3}]
    write_json_lines(tmp_path / "countbench.jsonl", rows)
    write_json(tmp_path / "countbench_paired_questions.json", [{"question": "How many?"}] * 2)
    write_picture(tmp_path / "images/0.png", size_wh=(4, 3))
    (example,) = read_countbenchqa(tmp_path, "all")
    assert example.pictures[0].read(1000).shape == (3, 4, 3)
    assert example.references == "10"


@pytest.mark.parametrize("num_questions", [3, 5])
def test_every_countbench_row_needs_its_question(tmp_path: Path, num_questions: int) -> None:
    with pytest.raises(DataError, match=f"got {num_questions} questions"):
        list(read_countbenchqa(_countbench(tmp_path, num_questions=num_questions), "all"))


def test_missing_countbench_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"countbench_paired_questions\.json"):
        list(read_countbenchqa(tmp_path, "all"))
    write_json(tmp_path / "countbench_paired_questions.json", [])
    with pytest.raises(DataError, match=r"countbench\.jsonl"):
        list(read_countbenchqa(tmp_path, "all"))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "countbench_paired_questions.json", [])
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"x\.parquet is no parquet file"):
        list(read_countbenchqa(tmp_path, "all"))


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _countbench(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[parquet\]"):
        list(read_countbenchqa(tmp_path, "all"))
