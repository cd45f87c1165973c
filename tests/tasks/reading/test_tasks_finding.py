"""Pictures are found by what their name means, and never outside the folder it starts from."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from task_files import write_pixels

from paligemma.errors import ImageError
from paligemma.tasks.reading import finding
from paligemma.tasks.reading.pictures import FilePicture, folder_of, picture_in

GREY = np.full((2, 3, 3), 90, np.uint8)


def made(folder: Path, *names: str) -> Path:
    """The folder with a picture of each name in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_pixels(folder / f"{name}.png", GREY).rename(folder / name)
    finding.look_again()
    return folder


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("a.jpg", "a.jpg"),
        ("A.JPG", "a.jpg"),
        ("a.jpeg", "a.JPG"),
        ("a.webp", "a.png"),
        ("a.png", "a"),
        ("a", "a.png"),
        ("train/a.jpg", "a.jpg"),
        ("mscoco/images/train/a.jpg", "train/a.png"),
        ("Train/A.jpg", "train/a.jpg"),
        ("sub/a.jpg", "sub\\a.jpg"),
        ("x.y.jpg", "x.y.jpeg"),
        (
            unicodedata.normalize("NFD", "Müller/é.jpg"),
            unicodedata.normalize("NFC", "müller/é.jpg"),
        ),
        (unicodedata.normalize("NFC", "한.png"), unicodedata.normalize("NFD", "한.png")),
    ],
)
def test_a_name_that_differs_in_case_suffix_form_or_depth_is_found(
    tmp_path: Path, there: str, asked: str
) -> None:
    made(tmp_path, there, "other.jpg", "__MACOSX/a.jpg", ".thumbs/a.jpg")
    picture = picture_in(tmp_path, asked)
    assert picture.find() == tmp_path / there
    assert picture.read(10).tolist() == GREY.tolist()


@pytest.mark.parametrize("asked", ["a.jpg", "train/a.jpg", "b/b.jpg", "ä.jpg"])
def test_a_name_of_nothing_says_where_it_was_looked_for(tmp_path: Path, asked: str) -> None:
    made(tmp_path, "a.txt", "ab.jpg", "val/b.jpg", "a.jpg.tmp")
    with pytest.raises(ImageError, match=rf"no picture '{asked}' lies in {tmp_path} or a folder"):
        picture_in(tmp_path, asked).read(10)


def test_two_that_fit_are_both_named(tmp_path: Path) -> None:
    made(tmp_path, "train/1.jpg", "val/1.JPG", "a.png", "a.webp")
    with pytest.raises(ImageError, match=r"for '1\.jpg' there are train/1\.jpg and val/1\.JPG in"):
        picture_in(tmp_path, "1.jpg").find()
    with pytest.raises(ImageError, match=r"a\.png and a\.webp in .*; keep one"):
        picture_in(tmp_path, "a.jpg").find()
    # What is exactly there is meant.
    assert picture_in(tmp_path, "a.png").find() == tmp_path / "a.png"
    assert picture_in(tmp_path, "val/1.jpg").find() == tmp_path / "val/1.JPG"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "sub/../../secret.png",
        "..\\secret.png",
        "sub\\..\\..\\secret.png",
        "{outside}/secret.png",
        "C:\\secret.png",
        "\\\\host\\share\\secret.png",
        "secret.png\0.jpg",
        "",
        ".",
        "..",
        "link.png",
        "linked/secret.png",
        "x" * 5000,
        "x/" * 3000 + "a.png",
    ],
)
def test_no_name_leaves_its_folder(tmp_path: Path, name: str) -> None:
    outside = made(tmp_path, "secret.png")
    folder = made(tmp_path / "images", "sub/a.png", "a.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    finding.look_again()
    with pytest.raises(ImageError) as raised:
        picture_in(folder, name.format(outside=outside)).read(10)
    assert len(str(raised.value)) < 1000


def test_the_folder_itself_may_be_a_link_and_so_may_the_files_of_a_hub_cache(
    tmp_path: Path,
) -> None:
    made(tmp_path / "disk", "a.png")
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    assert picture_in(tmp_path / "images", "a.png").read(10).shape == (2, 3, 3)
    cache = made(tmp_path / "datasets--x", "blobs/0af3", "elsewhere/secret.png")
    snapshot = cache / "snapshots" / "8c1d" / "images"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../../blobs/0af3")
    (snapshot / "b.png").symlink_to("../../../elsewhere/secret.png")
    assert picture_in(snapshot, "a.png").read(10).shape == (2, 3, 3)
    with pytest.raises(ImageError, match="a link that leads out of it"):
        picture_in(snapshot, "b.png").read(10)


def test_a_folder_is_walked_once_and_only_after_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[str] = []
    walk = finding.os.walk
    monkeypatch.setattr(finding.os, "walk", lambda top: (walks.append(str(top)), walk(top))[1])
    made(tmp_path, "a.jpg", "in/b.jpg", "in/c.jpg")
    picture_in(tmp_path, "a.jpg").find()
    assert walks == []
    for name in ("b.jpg", "c.png", "a.png"):
        picture_in(tmp_path, name).find()
    assert walks == [str(tmp_path)]
    made(tmp_path, "d.jpg")
    assert picture_in(tmp_path, "d.png").find() == tmp_path / "d.jpg"


def test_an_index_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "MAX_FILES", 2)
    made(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert picture_in(tmp_path, "a.jpg").find() == tmp_path / "a.jpg"
    with pytest.raises(ImageError, match="holds more than 2 pictures, so each must have exactly"):
        picture_in(tmp_path, "a.png").find()
    # Several spellings are tried without it.
    assert picture_in(tmp_path, "x.jpg", "b.jpg").find() == tmp_path / "b.jpg"


def test_the_folder_that_holds_the_first_picture_is_taken(tmp_path: Path) -> None:
    made(tmp_path, "images/mscoco/train2014/COCO_1.jpg", "train2014/other.jpg")
    folders = [tmp_path / name for name in ("none", "train2014", "images")]
    assert folder_of(folders, "1.jpg", "COCO_1.jpg") == tmp_path / "images"
    assert folder_of(folders, "2.jpg") is None
    assert picture_in(folders[2], "1.jpg", "COCO_1.jpg").path == folders[2] / "COCO_1.jpg"


def test_where_a_picture_lies_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    alone, below = FilePicture(path=tmp_path / "a/b.png"), picture_in(tmp_path, "a/b.png")
    assert alone == below
    assert repr(alone) == repr(below)
