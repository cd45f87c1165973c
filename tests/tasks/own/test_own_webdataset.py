"""WebDataset shards are read in place; what is damaged in one loses no other row. Templates."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from task_files import write_json, write_json_lines, write_pixels

from paligemma.errors import DataError, ImageError
from paligemma.tasks.own import webdataset
from paligemma.tasks.own.files import recognise
from paligemma.tasks.own.labels import OwnExample
from paligemma.tasks.own.rows import TASKS
from paligemma.tasks.reading.finding import find_picture

(OWN,) = TASKS
GOOD = {"prefix": "detect cup", "suffix": "<loc0100><loc0100><loc0500><loc0600> cup"}


def encoded(grey: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), grey, np.uint8)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes | dict[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:") as archive:
        for name, content in members.items():
            data = json.dumps(content) if isinstance(content, dict) else content
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def found(data: Path, split: str = "train") -> tuple[list[OwnExample], list[str]]:
    rows = list(OWN.rows(data, split))
    good = [one for one in rows if isinstance(one, OwnExample)]
    return good, [str(one) for one in rows if isinstance(one, DataError)]


def test_shards_are_recognised_and_their_pictures_read_in_any_order(tmp_path: Path) -> None:
    for shard in range(2):
        members: dict[str, Any] = {}
        for k in range(3):
            grey = 50 * shard + 10 * k
            members[f"a/{k:04}.png"] = encoded(grey)
            members[f"a/{k:04}.json"] = {**GOOD, "score": 3}
        write_tar(tmp_path / f"train-{shard:05}.tar", members)
    write_tar(tmp_path / "val-00000.tar", {"x.jpg": encoded(9, "JPEG"), "x.txt": "a grey wall\n"})
    assert recognise(tmp_path, "train").format == "WebDataset"
    good, bad = found(tmp_path)
    assert not bad
    assert [one.prefix for one in good] == ["detect cup"] * 6
    assert len({one.id for one in good}) == 6
    assert good[0].objects[0].label == "cup"
    greys = [int(good[k].pictures[0].read(10**6)[0, 0, 0]) for k in (5, 0, 3, 1)]
    assert greys == [70, 0, 50, 10]
    (held,), bad = found(tmp_path, "valid")
    assert (held.prefix, held.targets, bad) == ("caption en", ("a grey wall",), [])


def test_a_row_without_picture_or_answer_loses_no_other(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "train.tar",
        {
            "0.png": encoded(1), "0.json": GOOD,
            "1.json": GOOD,
            "2.png": encoded(2),
            "3.png": encoded(3), "3.json": "{broken",
            "4.png": encoded(4), "4.json": {**GOOD, "suffix": 5},
            "5.png": encoded(5), "5.txt": b"\xff\xfe",
            "6.cls": "7", "6.png": encoded(6), "6.json": GOOD,
        },
    )  # fmt: skip
    good, bad = found(path)
    assert [int(one.pictures[0].read(10**6)[0, 0, 0]) for one in good] == [1, 6]
    assert len(bad) == 5
    for said, (key, word) in zip(
        bad, [("1", "picture"), ("2", "suffix"), ("3", "JSON"), ("4", "between"), ("5", "utf-8")],
        strict=True,
    ):  # fmt: skip
        assert f"train.tar, {key}" in said
        assert word in said


def test_a_text_beyond_its_bound_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "_MAX_TEXT_BYTES", 300)
    members = {"0.png": encoded(1), "0.txt": "a" * 301, "1.png": encoded(1), "1.txt": "b"}
    good, (said,) = found(write_tar(tmp_path / "a.tar", members))
    assert good[0].targets == ("b",)
    assert "may have 300 bytes in one piece, it has 301" in said


@pytest.mark.parametrize("cut", ["in a picture", "at a member", "in a header", "no tar"])
def test_a_damaged_shard_keeps_the_rows_before_and_is_named(tmp_path: Path, cut: str) -> None:
    members: dict[str, Any] = {}
    for k in range(4):
        members |= {f"{k}.json": GOOD, f"{k}.png": encoded(k)}
    path = write_tar(tmp_path / "train.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmember("3.json")
    ends = {"in a picture": last.offset - 480, "at a member": last.offset}
    if cut in ends:
        path.write_bytes(whole[: ends[cut]])
    elif cut == "in a header":
        path.write_bytes(whole[: last.offset] + b"?" * 512 + whole[last.offset + 512 :])
    else:
        path.write_bytes(b"this is no tar file" * 100)
    good, bad = found(tmp_path)
    assert len(good) == (0 if cut == "no tar" else 3)
    assert len(bad) == 1
    assert "it is no whole tar file" in bad[0]
    if cut == "in a picture":
        with pytest.raises(ImageError, match="ends inside"):
            good[-1].pictures[0].read(10**6)


def test_a_compressed_shard_says_how_to_unpack_it(tmp_path: Path) -> None:
    (tmp_path / "train.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"plain tar file, .* gunzip train.tar.gz"):
        list(OWN.rows(tmp_path, "train"))


def test_templates_make_prompts_and_answers_of_fields(tmp_path: Path) -> None:
    form = {"prefix": "answer en {question}", "suffix": "{reply}"}
    write_json(tmp_path / "own-format.json", form)
    row = {"question": "how many?", "reply": 3}
    write_tar(tmp_path / "train.tar", {"a.png": encoded(1), "a.json": row})
    write_pixels(tmp_path / "b.png", np.zeros((9, 9, 3), np.uint8))
    more = [{"image": "b.png", **row}, {"image": "b.png", "question": "where?"}]
    write_json_lines(tmp_path / "valid.jsonl", [*more, {**more[0], "reply": ["4", "four"]}])
    (one,), bad = found(tmp_path)
    assert (one.prefix, one.targets, bad) == ("answer en how many?", ("3",), [])
    (first, second), (said,) = found(tmp_path, "valid")
    assert (first.prefix, first.targets) == ("answer en how many?", ("3",))
    assert second.targets == ("4", "four")
    assert "valid.jsonl, row 2" in said
    assert "'reply'" in said


def test_a_template_that_names_no_column_is_named_before_any_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": [encoded(1)], "q": ["why?"], "a": ["so"]})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r'there are a, image, q; name another as "suffix"'):
        list(OWN.rows(tmp_path, "train"))
    write_json(tmp_path / "own-format.json", {"prefix": "{q}", "suffix": "{b}"})
    with pytest.raises(DataError, match=r"train.parquet: the templates .* column 'b'"):
        list(OWN.rows(tmp_path, "train"))
    write_json(tmp_path / "own-format.json", {"prefix": "answer de {q}", "suffix": "{a}"})
    (one,), _ = found(tmp_path)
    assert (one.prefix, one.targets) == ("answer de why?", ("so",))


def test_captions_of_coco_take_a_template(tmp_path: Path) -> None:
    write_pixels(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    write_json(tmp_path / "own-format.json", {"prefix": "describe {lang}"})
    write_json(
        tmp_path / "captions_train.json",
        {
            "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "ein Bild", "lang": "de"}],
        },
    )
    (one,), _ = found(tmp_path)
    assert (one.prefix, one.targets) == ("describe de", ("ein Bild",))


@pytest.mark.parametrize("name", ["train.tar", "train.jsonl", "rows.jsonl"])
def test_a_pipe_in_the_place_of_rows_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="holds none of these"):
        recognise(tmp_path, "train")


def test_a_pipe_in_the_place_of_a_picture_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a picture must be a file"):
        find_picture(tmp_path / "a.png", tmp_path)
