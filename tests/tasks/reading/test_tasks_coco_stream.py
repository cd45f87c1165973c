"""COCO's annotation files, read one object at a time."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from paligemma.errors import DataError
from paligemma.tasks.reading import coco_stream
from paligemma.tasks.reading.coco_stream import stream_lists

COCO = {
    "info": {"year": 2017, "list": [1, 2]},
    "licenses": [{"id": 1}],
    "images": [{"id": 9, "file_name": "é.jpg"}, {"id": 10, "file_name": "b].jpg"}],
    "nothing": [],
    "annotations": [{"id": 1, "bbox": [0.5, 1, 22, 3], "note": '"}],{'}],
}


def _write(folder: Path, text: str, name: str = "instances.json") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_come_out_however_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(coco_stream, "_CHUNK_CHARS", chunk)
    path = _write(tmp_path, json.dumps(COCO, indent=indent, ensure_ascii=False))
    assert list(stream_lists(path, ("images", "annotations"))) == [
        ("images", COCO["images"][0]),
        ("images", COCO["images"][1]),
        ("annotations", COCO["annotations"][0]),
    ]


def test_a_packed_file_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "instances.json.gz"
    path.write_bytes(gzip.compress(json.dumps(COCO).encode()))
    assert len(list(stream_lists(path, ("images",)))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1}]}', "lacks annotations"),
        ('{"images": 3, "annotations": []}', r"images must be a list of objects, got \[3\]"),
        ('{"images": [3], "annotations": []}', "images must be a list of objects, got 3"),
        ('{"images": [{"id": 1}', "cannot be read as COCO"),
        ('{"images": [{"id": 1} {"id": 2}]}', "expected one of"),
        ("[]", "expected one of"),
        ("", "expected one of"),
        ('{"images": [' + "[" * 100_000, "cannot be read as COCO"),
    ],
)
def test_what_is_no_annotation_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(stream_lists(_write(tmp_path, text), ("images", "annotations")))
    assert "instances.json" in str(caught.value)


def test_one_object_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_stream, "_CHUNK_CHARS", 16)
    monkeypatch.setattr(coco_stream, "MAX_VALUE_CHARS", 64)
    path = _write(tmp_path, '{"images": [{"name": "' + "a" * 100 + '"}]}')
    with pytest.raises(DataError, match="more than 64 characters"):
        list(stream_lists(path, ("images",)))
