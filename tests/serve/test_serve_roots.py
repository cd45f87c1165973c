"""Only files below the named folders are read, whatever their names lead to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from paligemma.errors import ConfigError, ImageError
from paligemma.serve.roots import Roots


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "open" / "deep").mkdir(parents=True)
    (tmp_path / "open" / "a.png").write_bytes(b"a")
    (tmp_path / "open" / "deep" / "b.png").write_bytes(b"b")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "open-beside").mkdir()
    (tmp_path / "open-beside" / "c.png").write_bytes(b"secret")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["a.png", "./a.png", "deep/../a.png", "{}/open/a.png", "{}/open-beside/../open/a.png"]
)
def test_a_file_below_a_root_is_read(tree: Path, name: str) -> None:
    assert Roots([tree / "open"]).read(name.format(tree)) == b"a"


def test_a_home_stands_for_its_folder_but_opens_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert Roots([tree / "open"]).read("~/open/a.png") == b"a"
    for name in ("~/secret", "~/open/../secret", "~root/x", "~"):
        with pytest.raises(ImageError, match=r"below a root|existing file"):
            Roots([tree / "open"]).read(name)


def test_links_that_stay_below_are_followed_and_a_root_may_be_a_link(tree: Path) -> None:
    (tree / "open" / "inner").symlink_to("deep/b.png")
    (tree / "other").symlink_to("open")
    assert Roots([tree / "other"]).read("inner") == b"b"
    assert Roots([tree / "other"]).read(str(tree / "open" / "a.png")) == b"a"


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "deep/../../secret", "{}/secret", "{}/open/../secret", "{}/missing"),
        *("{}/open-beside/c.png", "link", "folder/secret", "circle", "..", ".", "", "/", "//"),
        *("/etc/passwd", "/proc/self/environ", "a\0.png", "deep/" + "x" * 5000, "~/secret"),
        "file://{}/secret",
    ],
)
def test_nothing_else_is_read(tree: Path, name: str) -> None:
    (tree / "open" / "link").symlink_to(tree / "secret")
    (tree / "open" / "folder").symlink_to(tree)
    (tree / "open" / "circle").symlink_to("circle")
    with pytest.raises(ImageError, match=r"below a root|existing file"):
        Roots([tree / "open"]).read(name.format(tree))


def test_the_sentence_is_the_same_whether_a_file_outside_is_there_or_not(tree: Path) -> None:
    said = []
    for name in ("../secret", "../absent"):
        with pytest.raises(ImageError) as caught:
            Roots([tree / "open"]).read(name)
        said.append(str(caught.value).replace(name, ""))
    assert said[0] == said[1]


def test_a_name_is_looked_for_below_each_root_in_order(tree: Path) -> None:
    roots = Roots([tree / "open-beside", tree / "open"])
    assert roots.read("a.png") == b"a"
    assert roots.read("c.png") == b"secret"


def test_pipes_devices_sockets_and_folders_are_refused_without_waiting(tree: Path) -> None:
    os.mkfifo(tree / "open" / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tree / "open" / "socket"))
        for name in ("pipe", "socket", "deep"):
            with pytest.raises(ImageError, match="existing file"):
                Roots([tree / "open"]).read(name)


def test_a_file_that_is_too_large_is_not_read(tree: Path) -> None:
    with open(tree / "open" / "huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="bytes"):
        Roots([tree / "open"]).read("huge")


def test_without_a_root_nothing_is_read_and_a_root_is_a_folder(tree: Path) -> None:
    with pytest.raises(ImageError, match="--root"):
        Roots([]).read(str(tree / "open" / "a.png"))
    for name in ("secret", "missing"):
        with pytest.raises(ConfigError, match="folder"):
            Roots([tree / name])
