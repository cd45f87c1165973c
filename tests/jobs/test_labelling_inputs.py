"""Rows of every kind of input: the same from any place on, and nothing but names is read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from task_files import write_json_lines, write_picture

from paligemma.errors import DataError, ImageError
from paligemma.jobs.labelling.finding import open_input
from paligemma.jobs.labelling.inputs import Input

NUM = 7


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(NUM):
        write_picture(folder / "in" / f"{k}.png", color=(30 * k, 5, 9))
    return folder / "in"


def folder_of(pictures: Path, tmp_path: Path) -> str:
    return str(pictures)


def pattern_of(pictures: Path, tmp_path: Path) -> str:
    return f"{pictures.parent}/*/*.png"


def json_lines_of(pictures: Path, tmp_path: Path) -> str:
    rows = [{"image": f"{k}.png", "question": f"{k}?"} for k in range(NUM)]
    write_json_lines(pictures.parent / "in" / "a.jsonl", rows[:4])
    write_json_lines(pictures.parent / "in" / "b.jsonl", rows[4:])
    return f"{pictures}/[ab].jsonl"


def parquet_of(pictures: Path, tmp_path: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {"image": {"bytes": (pictures / f"{k}.png").read_bytes(), "path": f"{k}.png"}, "n": k}
        for k in range(NUM)
    ]
    parquet.write_table(pa.Table.from_pylist(rows[:5]), tmp_path / "a.parquet", row_group_size=2)
    parquet.write_table(pa.Table.from_pylist(rows[5:]), tmp_path / "b.parquet")
    return str(tmp_path)


def tar_of(pictures: Path, tmp_path: Path) -> str:
    for name, numbers in {"a.tar": range(3), "b.tar": range(3, NUM)}.items():
        with tarfile.open(tmp_path / name, "w") as archive:
            for k in numbers:
                for member, data in {
                    f"{k}.json": json.dumps({"question": f"{k}?"}).encode(),
                    f"{k}.png": (pictures / f"{k}.png").read_bytes(),
                }.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return str(tmp_path / "*.tar")


KINDS = [folder_of, pattern_of, json_lines_of, parquet_of, tar_of]


def reds(source: Input, start: tuple[int, ...] | None = None) -> list[int]:
    """Red of the picture of each row, which tells it from the others."""
    rows = source.rows() if start is None else source.rows(start)
    return [int(row.pictures[0].read(1 << 20)[0, 0, 0]) for _, row in rows]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_rows_come_in_order_and_from_any_place_on(
    make: object, pictures: Path, tmp_path: Path
) -> None:
    source = open_input(make(pictures, tmp_path), tmp_path / "listing", columns=("n",))  # type: ignore[operator]
    everything = reds(source)
    assert everything == [30 * k for k in range(NUM)]
    for k, (place, _) in enumerate(source.rows()):
        assert reds(source, place) == everything[k:]


def test_a_picture_that_appears_later_moves_no_row(pictures: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "b.png")
    before = open_input(tmp_path / "in", tmp_path / "listing")
    names = [row.name for _, row in before.rows()]
    write_picture(tmp_path / "in" / "a.png")
    again = open_input(tmp_path / "in", tmp_path / "listing")
    assert [row.name for _, row in again.rows()] == names == ["b.png"]
    assert again.identity() == before.identity()


def test_pictures_of_a_folder_are_read_where_they_were_found(tmp_path: Path) -> None:
    write_picture(tmp_path / "disk" / "a.png", color=(30, 0, 0))
    write_picture(tmp_path / "in" / "b.png", color=(60, 0, 0))
    write_picture(tmp_path / "in" / "sub" / "b.jpg", color=(90, 0, 0))
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "disk")
    source = open_input(tmp_path / "in", tmp_path / "listing")
    assert [row.name for _, row in source.rows()] == ["b.png", "sub/b.jpg", "linked/a.png"]
    (tmp_path / "in" / "b.png").unlink()
    first, _, linked = (row.pictures[0] for _, row in source.rows())
    assert int(linked.read(1 << 20)[0, 0, 0]) == 30
    with pytest.raises(ImageError, match=r"b\.png"):  # and not sub/b.jpg in its place
        first.read(1 << 20)


@pytest.mark.parametrize("place", ["in", "in/*.png", "in/**/*.png"])
def test_a_link_to_nothing_has_its_row_by_which_it_is_named(tmp_path: Path, place: str) -> None:
    write_picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "lost.png").symlink_to(tmp_path / "nothing.png")
    source = open_input(tmp_path / place, tmp_path / "listing")
    _, lost = (row for _, row in source.rows())
    assert lost.name == "lost.png"
    with pytest.raises(ImageError, match=r"lost\.png"):
        lost.pictures[0].read(1 << 20)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "shard.tar.gz", "rows.json", "rows.csv"])
def test_a_file_of_another_kind_is_no_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(DataError, match="an input is pictures or"):
        open_input(tmp_path / name, tmp_path / "listing")


def test_suffixes_may_be_capitals(pictures: Path, tmp_path: Path) -> None:
    source = write_json_lines(pictures / "ROWS.JSONL", [{"image": "1.png"}])
    assert reds(open_input(source, tmp_path / "listing")) == [30]


def test_a_split_takes_its_files_alone(pictures: Path, tmp_path: Path) -> None:
    parquet_of(pictures, tmp_path)
    (tmp_path / "a.parquet").rename(tmp_path / "train-00000.parquet")
    (tmp_path / "b.parquet").rename(tmp_path / "validation-00000.parquet")
    source = open_input(tmp_path, tmp_path / "listing", split="valid")
    assert len(reds(source)) == 2
    with pytest.raises(DataError, match="no files of the split 'dev2'"):
        open_input(tmp_path, tmp_path / "listing", split="dev2")


def test_rows_of_shards_that_number_them_alike_have_names_of_their_own(tmp_path: Path) -> None:
    for shard in "ab":
        path = write_picture(tmp_path / "0.png", size_wh=(12, 8) if shard == "a" else (8, 12))
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            archive.add(path, "0.png")
    several = open_input(tmp_path / "*.tar", tmp_path / "listing")
    assert [row.name for _, row in several.rows()] == ["a/0.png", "b/0.png"]
    alone = open_input(tmp_path / "a.tar", tmp_path / "listing")
    assert [row.name for _, row in alone.rows()] == ["0.png"]


def test_what_is_there_besides_the_rows_that_are_taken_is_not_passed_over(
    pictures: Path, tmp_path: Path
) -> None:
    json_lines_of(pictures, tmp_path)
    with pytest.raises(DataError, match=r"of one kind, .* has \.jsonl, .*0\.png"):
        open_input(f"{pictures}/*", tmp_path / "listing")
    write_picture(tmp_path / "0.png")
    parquet_of(pictures, tmp_path)
    with pytest.raises(DataError, match=r"of one kind, .* has \.parquet, .*0\.png"):
        open_input(tmp_path, tmp_path / "listing")
    assert len(reds(open_input(f"{tmp_path}/*.parquet", tmp_path / "listing"))) == NUM


@pytest.mark.parametrize("make", [folder_of, json_lines_of, pattern_of])
def test_a_split_of_what_has_none_is_refused(make: object, pictures: Path, tmp_path: Path) -> None:
    place = make(pictures, tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=r"--split is of a folder of \.parquet or \.tar files"):
        open_input(place, tmp_path / "listing", split="train")


def test_a_folder_of_names_is_refused_where_pictures_are_not_named(
    pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"--pictures is of \.jsonl and \.parquet files"):
        open_input(tar_of(pictures, tmp_path), tmp_path / "listing", pictures=pictures)


def test_a_damaged_shard_is_named_and_those_behind_it_are_read(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar_of(pictures, tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 4 * tarfile.BLOCKSIZE])  # the parts of one row
    source = open_input(tmp_path / "*.tar", tmp_path / "listing")
    rows = list(source.rows())
    (at,) = (k for k, (_, row) in enumerate(rows) if row.error is not None)
    assert "a.tar is no whole tar file" in str(rows[at][1].error)
    assert "a.tar is no whole tar file" in caplog.text
    assert [row.name for _, row in rows[at + 1 :]] == [f"b/{k}.png" for k in range(3, NUM)]
    assert at == 1
    names = [row.name for _, row in rows]
    for k, (place, _) in enumerate(rows):
        assert [row.name for _, row in source.rows(place)] == names[k:]


def test_a_damaged_group_of_parquet_costs_its_rows_alone(pictures: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    parquet_of(pictures, tmp_path)
    found = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(2)  # n
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    begin = found.dictionary_page_offset or found.data_page_offset
    data[begin : begin + 20] = bytes(20)
    (tmp_path / "a.parquet").write_bytes(data)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut short")
    (tmp_path / "c.parquet").write_bytes(bytes(data))
    source = open_input(tmp_path, tmp_path / "listing", columns=("n",))
    rows = list(source.rows())
    bad = [k for k, (_, row) in enumerate(rows) if row.error is not None]
    assert bad == [2, 3, 5, 8, 9]  # group 1 of a, all of b, group 1 of c
    assert "group 1 of its rows, is damaged" in str(rows[2][1].error)
    assert "b.parquet is no parquet file" in str(rows[5][1].error)
    for k, (place, _) in enumerate(rows):
        again = [row.name for _, row in source.rows(place)]
        assert again == [row.name for _, row in rows[k:]]


def test_a_first_file_of_another_kind_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="is no parquet file"):
        list(open_input(tmp_path, tmp_path / "listing").rows())


def test_an_overlong_line_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.jobs.labelling.inputs._MAX_LINE_BYTES", 100)
    lines = ['{"image": "a.png"}', json.dumps({"image": "x" * 350}), '{"image": "b.png"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    rows = [row for _, row in open_input(tmp_path / "rows.jsonl", tmp_path / "l").rows()]
    assert [row.name for row in rows] == ["a.png", "", "b.png"]
    assert rows[1].error is not None
    assert "may have 100 bytes" in rows[1].error
