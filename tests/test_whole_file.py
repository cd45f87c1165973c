"""Files that appear whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paligemma.errors import ConfigError
from paligemma.whole_file import staging_folder, whole_file, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_is_interrupted_keeps_its_former_content(tmp_path: Path) -> None:
    path = tmp_path / "figures.npz"
    path.write_text("old")

    def interrupted() -> None:
        with whole_file(path) as partial:
            assert (partial.suffix, partial.parent) == (".npz", tmp_path)
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert (path.read_text(), names(tmp_path)) == ("old", ["figures.npz"])
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), names(tmp_path)) == ("new", ["figures.npz"])


@pytest.mark.parametrize("sync", [False, True])
def test_content_reaches_the_disk_before_the_name_if_asked(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    move = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *pair: (done.append("rename"), move(*pair)))
    with whole_file(tmp_path / "a.txt", sync=sync) as partial:
        partial.write_text("a")
    assert done == (["sync", "rename"] if sync else ["rename"])
    done.clear()
    write_whole(tmp_path / "b.txt", ["a", "ö"])
    assert done == ["sync", "rename"]
    assert (tmp_path / "b.txt").read_bytes() == "aö".encode()


def test_a_file_for_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/page.html \(No such file or directory\); make"):
        write_whole(tmp_path / "none" / "page.html", ["x"])


def test_a_staging_folder_leaves_nothing_unless_it_was_renamed(tmp_path: Path) -> None:
    target = tmp_path / "made" / "model"

    def interrupted() -> None:
        with staging_folder(target) as staging:
            (staging / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert names(target.parent) == []
    with staging_folder(target) as staging:
        (staging / "whole").touch()
        staging.replace(target)
    assert (names(target.parent), names(target)) == (["model"], ["whole"])
