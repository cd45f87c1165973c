"""What stops a labelling: what it leaves is tidied up, and only a kill counts as a death."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_labelling_run import contents, labelled, rows_of
from toy_labeller import ToyLabeller, label_toys

from paligemma.errors import ConfigError

resource = pytest.importorskip("resource")
DIGITS = "0123456789abcdef" * 2


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, out, ToyLabeller())
    whole = names(out)
    unfinished = [
        f".labels-00000001.{DIGITS}.jsonl",
        f".batch.{DIGITS}.json",
        f"quarantine/.part-00000001.{DIGITS}.jsonl",
    ]
    others = [f".mine.{DIGITS}.jsonl", ".labels-00000001.jsonl", ".labels-00000001.1234.jsonl"]
    for name in (*unfinished, *others):
        (out / name).write_text("half")
    label_toys(rows, out, ToyLabeller())
    assert names(out) == whole | set(others)


def test_a_full_disk_is_no_death_of_a_process(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, tmp_path / "whole", ToyLabeller())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(ToyLabeller):
        """From its first answer on no file can grow: not that of labels, nor the notes."""

        def answer(self, examples, prepared):  # type: ignore[no-untyped-def]
            size = (out / "begun.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
            return super().answer(examples, prepared)

    for _ in range(4):
        try:
            with pytest.raises(ConfigError, match="are kept: make room"):
                label_toys(rows, out, Fills(), num_threads=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert labelled(out) == []
    label_toys(rows, out, ToyLabeller())
    assert contents(out) == contents(tmp_path / "whole")


def test_a_row_that_is_asked_alone_when_the_run_is_stopped_is_not_refused(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"

    class Stopped(ToyLabeller):
        """Ctrl-C comes while row 13 is asked."""

        def answer(self, examples, prepared):  # type: ignore[no-untyped-def]
            if "13" in [one.id for one in examples]:
                raise KeyboardInterrupt
            return super().answer(examples, prepared)

    with pytest.raises(KeyboardInterrupt):
        label_toys(rows, out, Stopped())
    (out / "begun.jsonl").write_text('{"part": 1}\n' * 2)  # as two kills leave it
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            label_toys(rows, out, Stopped())
    assert label_toys(rows, out, ToyLabeller()).num_quarantined == 0
    assert [one["row"] for one in labelled(out)] == list(range(43))
