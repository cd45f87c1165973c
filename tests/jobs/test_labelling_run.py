"""Labelling of many rows: exactly once, whatever dies, and the same bytes however it is cut."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from task_files import write_json_lines, write_picture
from toy_labeller import DEADLY, ToyLabeller, label_toys

from paligemma.errors import ConfigError, DataError
from paligemma.jobs.labelling.folder import LabelFolder

NUM_ROWS = 43
PROGRAM = Path(__file__).parents[1] / "toy_labeller.py"


def rows_of(folder: Path, num: int = NUM_ROWS) -> Path:
    """A file of rows, three about each picture, with prompts of unequal length."""
    for k in range(-(-num // 3)):
        write_picture(folder / f"{k}.png", color=(100 + k, 7 * k % 256, 3))
    rows = [
        {"image": f"{k // 3}.png", "id": f"row {k}", "question": "why " * (k * 7 % 11) + "so"}
        for k in range(num)
    ]
    return write_json_lines(folder / "rows.jsonl", rows)


def contents(output: Path) -> dict[str, bytes]:
    """Everything a reader of the labels takes."""
    files = [*output.glob("labels-*"), *output.glob("quarantine/*")]
    return {path.name: path.read_bytes() for path in files}


def labelled(output: Path) -> list[dict]:
    return list(LabelFolder(output).records())


def test_every_row_is_there_once_and_in_the_order_of_the_input(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "in")
    found = label_toys(rows, tmp_path / "out", ToyLabeller(), prompt="answer en {question}")
    records = labelled(tmp_path / "out")
    assert [one["row"] for one in records] == list(range(NUM_ROWS))
    assert records[7]["id"] == "row 7"
    assert records[7]["image"] == "2.png"
    assert records[7]["prompt"] == "answer en " + "why " * 5 + "so"
    assert {one["key"] for one in records} == {found.folder.key}
    assert (found.num_rows, found.num_quarantined, found.num_new) == (NUM_ROWS, 0, NUM_ROWS)


def test_rows_of_a_picture_share_its_reading_and_batches_have_prompts_of_like_length(
    tmp_path: Path,
) -> None:
    rows = rows_of(tmp_path / "in", 42)
    labeller = ToyLabeller()
    label_toys(
        rows, tmp_path / "out", labeller, prompt="answer en {question}", batch_size=3, part_rows=99
    )
    assert labeller.num_read == 14  # of 42 rows
    assert max(map(len, labeller.batches)) == 3
    together = [{int(row) // 3 for row in batch} for batch in labeller.batches]
    assert all(len(pictures) == 1 for pictures in together)


def test_parts_that_are_there_are_not_asked_again_and_a_lost_one_comes_back_the_same(
    tmp_path: Path,
) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, out, ToyLabeller())
    before = contents(out)
    (out / "labels-00000002.jsonl").unlink()
    labeller = ToyLabeller()
    found = label_toys(rows, out, labeller)
    assert contents(out) == before
    assert found.num_new == 10
    assert {int(row) for batch in labeller.batches for row in batch} == set(range(20, 30))


def test_threads_and_planning_from_anew_change_no_byte(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "in")
    label_toys(rows, tmp_path / "one", ToyLabeller(), num_threads=0)
    label_toys(rows, tmp_path / "two", ToyLabeller(0.001), num_threads=4)
    (tmp_path / "two" / "parts.jsonl").write_text("")  # as a power cut may leave it
    (tmp_path / "two" / "labels-00000001.jsonl").unlink()
    label_toys(rows, tmp_path / "two", ToyLabeller(), num_threads=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_bad_row_is_quarantined_with_its_reason_and_stops_no_other(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    (tmp_path / "in" / "4.png").write_text("no picture")
    (tmp_path / "in" / "5.png").unlink()
    lines = rows.read_text().splitlines()
    lines[0] = "{"
    lines[1] = json.dumps({"image": "../outside.png"})
    lines[2] = json.dumps({"image": "0.png"})  # without the field of the template
    lines[3] = json.dumps({"image": "\udcff.png", "question": "x"})
    rows.write_text("\n".join(lines) + "\n")
    found = label_toys(rows, out, ToyLabeller(), prompt="answer en {question}")
    bad = [
        json.loads(line)
        for path in found.folder.quarantine_files()
        for line in path.read_text().splitlines()
    ]
    reasons = {one["row"]: one["reason"] for one in bad}
    assert sorted(reasons) == [0, 1, 2, 3, *range(12, 18)]
    assert "byte 0" in reasons[0]
    assert "must name a file below the data folder" in reasons[1]
    assert "question" in reasons[2]
    assert "cannot be recognised" in reasons[12]
    assert found.num_quarantined == 10
    done = [one["row"] for one in labelled(out)]
    assert sorted([*done, *reasons]) == list(range(NUM_ROWS))


def test_what_was_quarantined_is_asked_again_on_request(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, tmp_path / "good", ToyLabeller())
    whole = (tmp_path / "in" / "4.png").read_bytes()
    (tmp_path / "in" / "4.png").write_text("no picture")
    assert label_toys(rows, out, ToyLabeller()).num_quarantined == 3
    (tmp_path / "in" / "4.png").write_bytes(whole)
    assert label_toys(rows, out, ToyLabeller()).num_new == 0
    assert label_toys(rows, out, ToyLabeller(), retry=True).num_quarantined == 0
    assert contents(out) == contents(tmp_path / "good")


def test_another_question_or_a_changed_input_is_refused(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, out, ToyLabeller())
    with pytest.raises(ConfigError, match=r"prompt was .*thing.*is .*cup"):
        label_toys(rows, out, ToyLabeller(), prompt="detect cup")
    rows.write_text(rows.read_text().replace("row 3", "row 4"))
    with pytest.raises(ConfigError, match="input was"):
        label_toys(rows, out, ToyLabeller())


def test_another_folder_of_pictures_is_not_taken_for_the_one_that_was_listed(
    tmp_path: Path,
) -> None:
    for name in "ab":
        write_picture(tmp_path / name / "1.png")
    label_toys(tmp_path / "a", tmp_path / "out", ToyLabeller())
    with pytest.raises(ConfigError, match="input was"):
        label_toys(tmp_path / "b", tmp_path / "out", ToyLabeller())


def test_labels_may_lie_among_the_pictures_that_they_are_of(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_picture(tmp_path / "in" / "1.png")
    for expected in (1, 0):
        found = label_toys(tmp_path / "in", tmp_path / "in" / "out", ToyLabeller(), form="parquet")
        assert found.num_new == expected


def test_labels_without_their_record_are_not_gone_on_with(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, out, ToyLabeller())
    (out / "batch.json").unlink()
    with pytest.raises(ConfigError, match=r"holds files of labels but no batch\.json"):
        label_toys(rows, out, ToyLabeller())
    assert len(labelled(out)) == NUM_ROWS


def test_an_input_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        label_toys(tmp_path / "nothing", tmp_path / "out", ToyLabeller())
    assert not (tmp_path / "out").exists()


def killed_after(rows: Path, out: Path, num_parts: int) -> None:
    """Label in a process and kill it when it has written some parts."""
    process = subprocess.Popen([sys.executable, PROGRAM, rows, out, "0.02"])
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob("labels-*"))) < num_parts and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_run_that_was_killed_three_times_ends_with_the_same_bytes(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, tmp_path / "whole", ToyLabeller())
    for num_parts in (1, 2, 4):
        killed_after(rows, out, num_parts)
    assert 1 <= len(list(out.glob("labels-*"))) < 5
    label_toys(rows, out, ToyLabeller())
    assert contents(out) == contents(tmp_path / "whole")


def test_a_row_that_kills_its_process_is_quarantined_in_the_end(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in", 21), tmp_path / "out"
    write_picture(tmp_path / "in" / "1.png", color=(DEADLY, 0, 0))
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines[:4], *lines[6:]]) + "\n")  # row 3 alone has the picture
    codes = []
    while not codes or codes[-1] != 0:
        assert len(codes) < 8
        codes.append(subprocess.run([sys.executable, PROGRAM, rows, out, "0"]).returncode)
    assert codes == [-signal.SIGKILL] * 4 + [0]
    (bad,) = LabelFolder(out).quarantine_files()
    (row,) = map(json.loads, bad.read_text().splitlines())
    assert row["row"] == 3
    assert "died 2 times" in row["reason"]
    assert [one["row"] for one in labelled(out)] == [k for k in range(19) if k != 3]
