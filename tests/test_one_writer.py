"""A folder has one writer; the second is told who it is, and nothing outlives the first."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paligemma.errors import ConfigError
from paligemma.one_writer import LOCK_FILE, one_writer


def held(folder: Path, end: str = "sys.stdin.read()") -> subprocess.Popen[str]:
    """Another process that writes to the folder until its input ends."""
    code = (
        "import sys, os; from pathlib import Path; from paligemma.one_writer import one_writer\n"
        f"with one_writer(Path(sys.argv[1])):\n    print('in', flush=True)\n    {end}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def enter(folder: Path) -> bool:
    with one_writer(folder):
        return True


def test_the_second_writer_is_told_who_the_first_is_and_since_when(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "run"
    first = held(folder)
    who = rf"process {first.pid} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d; wait for it"
    with pytest.raises(ConfigError, match=rf"another process is writing to .*run: {who}"):
        enter(folder)
    first.communicate("")
    assert enter(folder)
    # A folder that was made for nothing is removed again.
    assert not folder.exists()


def test_a_killed_writer_keeps_nobody_out(tmp_path: Path) -> None:
    first = held(tmp_path)
    first.kill()
    first.communicate()
    assert (tmp_path / LOCK_FILE).is_file()
    assert enter(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forked processes")
def test_the_forks_of_a_killed_writer_keep_nobody_out_either(tmp_path: Path) -> None:
    # Both read an input that does not end before the assertion.
    first = held(tmp_path, "os.fork(); os.write(1, b'forked\\n'); sys.stdin.read()")
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in range(2)] == ["forked\n"] * 2
    first.kill()
    first.wait()
    assert enter(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()
    first.communicate("")


def test_one_process_is_one_writer_too(tmp_path: Path) -> None:
    with one_writer(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        enter(tmp_path)
    assert enter(tmp_path)


def test_a_link_at_the_name_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.txt"
    stranger.write_text("mine")
    (tmp_path / LOCK_FILE).symlink_to(stranger)
    with pytest.raises(ConfigError, match="a result needs a folder that can be written"):
        enter(tmp_path)
    assert stranger.read_text() == "mine"


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name another place"):
        enter(tmp_path / "file" / "run")


def _count(folder: Path, times: int) -> int:
    """How often this process got in and found itself alone."""
    alone = 0
    for _ in range(times):
        try:
            with one_writer(folder):
                inside = folder / "inside"
                inside.touch(exist_ok=False)
                inside.unlink()
                alone += 1
        except ConfigError:
            continue
    return alone


def test_of_many_that_come_and_go_never_two_are_inside(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        counts = pool.starmap(_count, [(tmp_path, 200)] * 3)
    assert min(counts) > 0
    assert list(tmp_path.iterdir()) == []
