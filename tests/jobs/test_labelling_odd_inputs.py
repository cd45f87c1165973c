"""Inputs as other programs leave them: no row is lost without a word, and none is misread."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from task_files import write_json_lines, write_picture
from toy_labeller import ToyLabeller, label_toys

from paligemma.errors import DataError
from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.jobs.labelling.records import Record


def encoded(color: int = 30, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (color, 5, 9)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    return path


def link(name: str, target: str, kind: bytes) -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def outcome(source: Path, **more: Any) -> tuple[list[Record], dict[int, str]]:
    """The labelled rows, and the reasons of the others."""
    out = source.parent / "out"
    label_toys(source, out, ToyLabeller(), **more)
    files = LabelFolder(out).quarantine_files()
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return list(LabelFolder(out).records()), {one["row"]: one["reason"] for one in lines}


def test_links_of_a_shard_are_rows_without_an_answer(tmp_path: Path) -> None:
    source = write_tar(
        tmp_path / "a.tar",
        ("0.png", encoded()),
        link("1.png", "0.png", tarfile.LNKTYPE),
        link("2.png", "0.png", tarfile.SYMTYPE),
        ("3.png", encoded()),
        link("3.json", "0.json", tarfile.LNKTYPE),
        ("4.png", encoded()),
    )
    done, bad = outcome(source)
    assert [one["image"] for one in done] == ["0.png", "4.png"]
    assert sorted(bad) == [1, 2, 3]
    assert all("is a link or a device; pack the file itself" in reason for reason in bad.values())


def test_pictures_of_every_kind_are_rows_of_a_shard(tmp_path: Path) -> None:
    source = write_tar(
        tmp_path / "a.tar",
        *((f"{k}.{kind}", encoded(kind=kind)) for k, kind in enumerate(["png", "bmp", "tiff"])),
        ("3.gif", encoded(kind="GIF")),
        ("3.png", encoded()),  # a row's usual picture counts, and not both as frames
        ("._4.png", b"what macOS keeps"),
        ("4.png", encoded()),
    )
    done, bad = outcome(source)
    assert [one["image"] for one in done] == ["0.png", "1.bmp", "2.tiff", "3.png", "4.png"]
    assert not bad


def test_two_parts_of_one_name_are_not_taken_for_frames(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", *[("0.png", encoded())] * 2, ("1.png", encoded()))
    done, bad = outcome(source)
    assert [one["image"] for one in done] == ["1.png"]
    assert "two of its parts have one name" in bad[0]


def test_joined_shards_are_named_and_not_cut_at_the_first(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", ("0.png", encoded())).read_bytes()
    source = tmp_path / "joined.tar"
    source.write_bytes(first + first)
    done, bad = outcome(source)
    assert [one["image"] for one in done] == ["0.png"]
    assert "more follows, as where files were joined" in bad[1]


def write_parquet(path: Path, table: Any) -> Path:
    """A file of a table, or of rows."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(table) if isinstance(table, list) else table, path)
    return path


def test_missing_numbers_are_not_asked_and_whole_ones_are_ids(tmp_path: Path) -> None:
    rows = [
        {"image": encoded(), "id": 7.0, "number": 3.5},
        {"image": encoded(), "id": float("nan"), "number": float("nan")},
    ]
    source = write_parquet(tmp_path / "rows.parquet", rows)
    done, bad = outcome(source, prompt="answer en {number}")
    assert [(one["id"], one["prompt"]) for one in done] == [("7", "answer en 3.5")]
    assert "'number' must be text, got nan" in bad[1]


def test_a_row_of_several_pictures_is_not_asked_about_the_first_alone(tmp_path: Path) -> None:
    one = {"bytes": encoded(), "path": None}
    source = write_parquet(tmp_path / "rows.parquet", [{"image": [one]}, {"image": [one, one]}])
    done, bad = outcome(source)
    assert [one["row"] for one in done] == [0]
    assert "a row has one picture" in bad[1]
    assert "has 2; make a row of each" in bad[1]


def test_names_may_be_categories_and_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    write_picture(tmp_path / "0.png")
    names = pa.array(["0.png", "0.png"])
    source = write_parquet(tmp_path / "a.parquet", pa.table({"image": names.dictionary_encode()}))
    assert [one["image"] for one in outcome(source)[0]] == ["0.png", "0.png"]
    twice = write_parquet(tmp_path / "b.parquet", pa.table([names, names], ["image", "image"]))
    with pytest.raises(DataError, match="one column must be image, there are image, image"):
        label_toys(twice, tmp_path / "b", ToyLabeller())


def test_folders_hidden_files_and_own_labels_are_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_parquet(folder / "set.parquet" / "0.parquet", [{"image": encoded()}])
    write_parquet(folder / ".hidden.parquet", [{"image": encoded()}])
    for num_new in (1, 0):
        found = label_toys(folder, folder / "out", ToyLabeller(), form="parquet")
        assert (found.num_rows, found.num_new) == (1, num_new)


@pytest.mark.parametrize("name", ["first name", "meta.name", "first-name"])
def test_templates_take_fields_of_any_name(tmp_path: Path, name: str) -> None:
    write_picture(tmp_path / "0.png")
    rows = [{"image": "0.png", name: "{a}"}, {"image": "0.png", "name": "b"}]
    source = write_json_lines(tmp_path / "rows.jsonl", rows)
    done, bad = outcome(source, prompt=f"answer en {{{name}}}")
    assert [one["prompt"] for one in done] == ["answer en {a}"]
    assert f"the field {name!r}" in bad[1]
