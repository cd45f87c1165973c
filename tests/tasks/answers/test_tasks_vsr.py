"""Statements about one picture: VSR."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_files import write_json_lines, write_picture

from paligemma.tasks.catalog import find_task

ROWS = [
    {"image": "1.jpg", "caption": "The cat is on the mat.", "label": 1, "relation": "on"},
    {"image": "1.jpg", "caption": "The mat is on the cat.", "label": 0, "relation": "on"},
]


@pytest.mark.parametrize("place", ["splits/random", "random", ""])
def test_statements_are_read_wherever_their_file_lies(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_json_lines(tmp_path / place / "test.jsonl", ROWS)
    write_picture(tmp_path / "images/1.jpg")
    found = list(find_task("vsr-random").read(tmp_path, "test"))
    assert [one.references for one in found] == ["True", "False"]
    assert found[0].prefix == "answer en The cat is on the mat."
    said = "does not say whether it is of the zero-shot or the random split; taken for random"
    assert (said in caplog.text) == (place == "")
