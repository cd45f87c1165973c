"""The folder of a labelling: what others keep there stays, and what does not belong is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from task_files import write_json_lines, write_picture
from toy_labeller import ToyLabeller, label_toys

from paligemma.errors import ConfigError, DataError
from paligemma.jobs.labelling.folder import LabelFolder

NUM = 25


def rows_of(folder: Path, color: int = 30) -> Path:
    """Rows about three pictures, which have another one in `other`."""
    for k in range(3):
        write_picture(folder / f"{k}.png", color=(color + k, 5, 9))
    rows = [{"image": f"{k % 3}.png", "other": f"{(k + 1) % 3}.png"} for k in range(NUM)]
    return write_json_lines(folder / "rows.jsonl", rows)


@pytest.mark.parametrize("named", ["in", "nothing"])
@pytest.mark.parametrize("name", ["log.jsonl", "pictures.jsonl", "parts.jsonl"])
def test_files_of_others_with_the_names_of_a_labelling_stay_as_they_are(
    tmp_path: Path, name: str, named: str
) -> None:
    write_picture(tmp_path / "in" / "0.png")
    own = '{"image": "mine.png"}\nwithout an end'
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(own)
    with pytest.raises(ConfigError, match=rf"holds {name} but no batch\.json"):
        label_toys(tmp_path / named, tmp_path / "out", ToyLabeller())
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {name: own}


def test_a_listing_of_a_run_that_was_killed_before_it_began_is_not_taken_for_another(
    tmp_path: Path,
) -> None:
    write_picture(tmp_path / "in" / "1.png")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("parts.jsonl", "log.jsonl", "begun.jsonl"):
        (out / name).touch()
    (out / "pictures.jsonl").write_text('{"image": "0.png"}\n')
    label_toys(tmp_path / "in", out, ToyLabeller())
    assert [one["image"] for one in LabelFolder(out).records()] == ["1.png"]


def test_what_cannot_be_a_folder_of_bad_rows_is_named(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quarantine").write_text("mine")
    with pytest.raises(ConfigError, match="quarantine cannot be written"):
        label_toys(rows, tmp_path / "out", ToyLabeller())
    assert (tmp_path / "out" / "quarantine").read_text() == "mine"


def test_rows_about_other_pictures_are_not_taken_for_those_that_are_there(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, out, ToyLabeller())
    elsewhere = rows_of(tmp_path / "elsewhere", color=90)
    assert elsewhere.read_bytes() == rows.read_bytes()
    for more in ({"column": "other"}, {"pictures": tmp_path / "elsewhere"}):
        with pytest.raises(
            ConfigError, match=rf"{'column' if 'column' in more else 'folders'} was"
        ):
            label_toys(rows, out, ToyLabeller(), **more)
    with pytest.raises(ConfigError, match="folders was"):
        label_toys(elsewhere, out, ToyLabeller())
    assert label_toys(rows, out, ToyLabeller(), pictures=tmp_path / "in").num_new == 0


GOOD = {"part": 0, "first_row": 0, "num_rows": 10, "start": [0, 0]}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("parts.jsonl", [{}]),
        ("parts.jsonl", [{**GOOD, "part": "x"}]),
        ("parts.jsonl", [{**GOOD, "start": [0, -5]}]),
        ("parts.jsonl", [GOOD, {**GOOD, "part": 2, "first_row": 20}]),  # 1 is missing
        ("begun.jsonl", [{"row": 3}]),
        ("begun.jsonl", [{"part": [1]}]),
    ],
)
def test_a_damaged_record_is_named_and_may_be_removed(
    tmp_path: Path, name: str, lines: list[dict]
) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, out, ToyLabeller())
    (out / "labels-00000001.jsonl").unlink()
    (out / name).write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(DataError, match=rf"{name}, line {len(lines)} .*; remove the file"):
        label_toys(rows, out, ToyLabeller())
    (out / name).unlink()
    label_toys(rows, out, ToyLabeller())
    assert [one["row"] for one in LabelFolder(out).records()] == list(range(NUM))
