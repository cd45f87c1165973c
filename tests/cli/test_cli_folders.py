"""Folders and patterns of pictures: asked as they are, written for other tools, gone on with."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma import Detections, PaliGemma
from paligemma.one_writer import one_writer
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.rle import decode_rle
from paligemma.outputs.types import Detection

Run = Callable[..., Any]
SIZE_WH = (40, 30)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures, of which one lies deeper, in a folder of the current one."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.png", "more/c.png")):
        Image.new("RGB", SIZE_WH, (number, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


class Answers:
    """Answers each picture by a star whose left edge grows with every picture asked."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.stop_at: int | None = None
        self.region: MaskRegion | None = None

    def __call__(self, pg: object, picture: Any, prompt: str, **options: object) -> Detections:
        if self.num_asked == self.stop_at:
            self.stop_at = None
            os.kill(os.getpid(), signal.SIGINT)
        self.num_asked += 1
        box_yxyx = (0.1, self.num_asked / 1023, 0.5, 0.9)
        item = Detection(
            label="star", box_yxyx=box_yxyx, image_wh=SIZE_WH, score=1 / 3, region=self.region
        )
        empty = Detection(label="dot", box_yxyx=(0, 0, 0, 0), image_wh=SIZE_WH)
        return Detections(items=(item, empty), image_wh=SIZE_WH, text="...")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    found = Answers()
    monkeypatch.setattr(PaliGemma, "ask", lambda *args, **how: found(*args, **how))
    return found


@pytest.mark.parametrize("words", [("photos",), ("photos/",), ("photos/**/*.*",)])
def test_a_folder_or_a_pattern_is_its_pictures(
    paligemma: Run, photos: Path, words: tuple[str, ...]
) -> None:
    done = paligemma("read", *words, "--max-new-tokens", "2")
    names = [line.split(": ")[0] for line in done.out.splitlines()]
    assert (done.status, names) == (0, ["photos/a.jpg", "photos/b.png", "photos/more/c.png"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("words", [("photos",), ("photos/**/*.*",)])
def test_a_pipe_in_a_folder_is_not_waited_for(
    paligemma: Run, photos: Path, words: tuple[str, ...]
) -> None:
    os.mkfifo(photos / "pipe.png")
    done = paligemma("read", *words, "--max-new-tokens", "2")
    assert (done.status, done.out.count("\n"), "pipe.png" in done.out) == (0, 3, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("read", "empty"), "a folder of pictures holds files such as .jpg or .png, 'empty' has"),
        (("read", "photos/*.gif"), "a pattern of pictures holds files"),
        (("detect", "photos/"), "'photos/' is a folder"),
        (("detect", "--labels", "star"), "Missing argument 'IMAGE...'"),
        (("run", "photos", "ocr", "--csv"), "write objects, and the prompt asks for none"),
        (("detect", "photos", "star", "--csv", "--json"), "takes --json or --csv"),
        (("detect", "photos", "star", "--csv", "./o", "--coco", "o"), "got one name twice"),
        (("detect", "photos", "photos/a.jpg", "star", "--coco", "photos/a.jpg"), "is one of them"),
    ],
)
def test_what_is_no_folder_of_pictures_is_said(
    paligemma: Run, photos: Path, words: tuple[str, ...], said: str
) -> None:
    Path("empty").mkdir()
    done = paligemma(*words, "--model", "no/such-model")
    assert (done.status, said in done.err, done.out) == (2, True, "")


def test_objects_are_written_for_other_tools(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    crop = np.ones((2, 3), bool)
    answers.region = MaskRegion(crop=crop, corner_xy=(5, 7), image_wh=SIZE_WH)
    words = ("segment", "photos", "--labels", "cat", "--labels", "star")  # the last alone counted
    done = paligemma(*words, "--coco", "o.json", "--yolo", "yolo", "--csv", "o.csv")
    assert (done.status, done.out) == (0, "")
    assert "wrote o.json: 3 of 3 pictures" in done.err
    assert "3/3" in done.err  # the bar
    coco = json.loads(Path("o.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == ["a.jpg", "b.png", "more/c.png"]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "star"}]
    for number, one in enumerate(coco["annotations"], start=1):
        assert (one["image_id"], one["category_id"], one["score"]) == (number, 2, 1 / 3)
        assert decode_rle(one["segmentation"]).sum() == 6
    labels = sorted(path.relative_to("yolo").as_posix() for path in Path("yolo").rglob("*.*"))
    assert labels == ["data.yaml", "labels/a.txt", "labels/b.txt", "labels/more/c.txt"]
    assert Path("yolo/labels/more/c.txt").read_text().startswith("1 ")
    assert Path("yolo/data.yaml").read_text() == 'names:\n  0: "cat"\n  1: "star"\n'
    rows = list(csv.DictReader(Path("o.csv").read_text().splitlines()))
    assert [row["image"] for row in rows if row["label"] == "star"] == [
        *("a.jpg", "b.png", "more/c.png")
    ]
    assert (rows[0]["right"], rows[0]["score"]) == ("36.00", "0.333333")
    again = paligemma(*words, "--coco", "o.json")
    assert (again.status, "a file that is there is kept, got o.json" in again.err) == (2, True)
    assert paligemma(*words, "--coco", "o.json", "--overwrite").status == 0
    printed = paligemma("detect", "photos/a.jpg", "star", "--csv")
    assert printed.out.startswith("image,width,height,label,score,left,top,right,bottom\na.jpg,40")


def test_one_bad_or_missing_picture_loses_no_other_and_is_asked_again(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    bad = photos / "b.png"
    good = bad.read_bytes()
    bad.write_bytes(b"no picture")
    words = ("detect", "photos", "gone.png", "--labels", "star", "--coco", "o.json")
    done = paligemma(*words)
    assert done.status == 2
    assert "there is no file gone.png" in done.err
    assert "photos/b.png cannot be recognised" in done.err
    assert "wrote o.json: 2 of 4 pictures" in done.err
    bad.write_bytes(good)
    shutil.copy(bad, "gone.png")
    assert paligemma(*words).status == 0
    assert answers.num_asked == 4
    assert len(json.loads(Path("o.json").read_text())["images"]) == 4
    assert not Path("o.json.part").exists()


@pytest.mark.parametrize("end", ["whole", "torn"])
def test_a_command_that_was_stopped_goes_on_and_ends_with_the_same_files(
    paligemma: Run, photos: Path, answers: Answers, end: str
) -> None:
    words = ("detect", "photos", "--labels", "star")
    files = ("--coco", "o.json", "--yolo", "yolo", "--csv", "o.csv")
    assert paligemma(*words, *files).status == 0
    kept = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for name in ("o.json", "o.csv"):
        Path(name).unlink()
    shutil.rmtree("yolo")
    answers.num_asked, answers.stop_at = 0, 2
    done = paligemma(*words, *files)
    assert done.status == 130
    assert "the same command goes on where it stopped" in done.err
    assert len(json.loads(Path("o.json").read_text())["images"]) == 2
    if end == "torn":
        with open("o.json.part", "a") as file:
            file.write('{"image": "photos/more')
    other = paligemma("detect", "photos", "--labels", "dog", *files)
    assert (other.status, "answers of another command" in other.err) == (2, True)
    assert paligemma(*words, *files).status == 0
    assert answers.num_asked == 3  # what was answered is not asked again
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == kept


def test_a_picture_that_changed_meanwhile_is_asked_again(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    words = ("detect", "photos", "--labels", "star", "--coco", "o.json")
    answers.stop_at = 2
    assert paligemma(*words).status == 130
    Image.new("RGB", (60, 20)).save(photos / "a.jpg")
    assert paligemma(*words).status == 0
    assert answers.num_asked == 4
    images = json.loads(Path("o.json").read_text())["images"]
    assert sorted(one["file_name"] for one in images) == ["a.jpg", "b.png", "more/c.png"]


def test_label_files_of_two_pictures_have_two_names(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    shutil.copy(photos / "a.jpg", photos / "a.jpeg")
    done = paligemma("detect", "photos", "star", "--yolo", "yolo")
    assert (done.status, "but a would be written twice" in done.err) == (2, True)


def test_a_picture_is_asked_in_tiles(paligemma: Run, photos: Path) -> None:
    words = ("detect", "photos/a.jpg", "star", "--constrain", "--max-new-tokens", "30", "--json")
    plain = paligemma(*words).json["detections"]
    tiled = paligemma(*words, "--tile", "2x2", "--tile-overlap", "0.1", "--max-overlap", "1")
    valid = [one for one in plain if one.get("valid", True)]
    assert len(tiled.json["detections"]) >= max(1, len(valid))
    for wrong, said in (("2", "tiles are columns and rows"), ("9x9", "at most 64")):
        done = paligemma(*words, "--tile", wrong, "--model", "no/such-model")
        assert (done.status, said in done.err) == (2, True)
    assert "state --tile too" in paligemma(*words, "--tile-overlap", "0.1").err


def _coco_names(path: str) -> list[str]:
    return [one["file_name"] for one in json.loads(Path(path).read_text())["images"]]


def test_names_that_are_no_utf8_or_hold_newlines_lose_no_row(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    for name in (b"\xff.png", b"two\nlines.png"):
        try:
            shutil.copy(photos / "b.png", os.path.join(os.fsencode(photos), name))
        except OSError:
            pytest.skip("this file system takes only UTF-8")
    words = ("detect", "photos", "--labels", "star", "--csv", "o.csv", "--coco", "o.json")
    assert paligemma(*words, "--yolo", "yolo").status == 0
    with open("o.csv", encoding="utf-8", newline="") as file:
        names = [row["image"] for row in csv.DictReader(file) if row["label"] == "star"]
    assert names == ["a.jpg", "b.png", "two\nlines.png", "\\udcff.png", "more/c.png"]
    assert len(_coco_names("o.json")) == len(list(Path("yolo/labels").rglob("*.txt"))) == 5


def test_no_label_file_leaves_its_folder_whatever_the_picture_is(
    paligemma: Run, photos: Path, answers: Answers, tmp_path: Path
) -> None:
    data = "data:image/png;base64," + base64.b64encode((photos / "b.png").read_bytes()).decode()
    below = tmp_path / "one/two"
    below.mkdir(parents=True)
    os.chdir(below)
    descriptor = os.open(photos / "b.png", os.O_RDONLY)
    before = os.dup(0)
    try:
        os.dup2(descriptor, 0)
        done = paligemma("detect", "-", data, "--labels", "star", "--yolo", "y", "--coco", "o.json")
    finally:
        os.dup2(before, 0)
    assert done.status == 0
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")}
    assert written == {f"one/two/y/labels/{name}.txt" for name in ("stdin", "picture-2")} | {
        "photos/notes.txt"
    }
    assert _coco_names("o.json") == ["stdin", "picture-2"]


def test_a_picture_named_twice_is_written_once(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    words = ("detect", "photos/a.jpg", "./photos/a.jpg", "photos", "--labels", "star")
    done = paligemma(*words, "--coco", "o.json", "--csv", "o.csv", "--yolo", "y")
    assert (done.status, answers.num_asked) == (0, 3)
    assert _coco_names("o.json") == ["a.jpg", "b.png", "more/c.png"]
    assert Path("o.csv").read_text().count("a.jpg") == 2  # its star and its empty dot


def test_label_files_of_the_user_are_kept(paligemma: Run, photos: Path, answers: Answers) -> None:
    mine = Path("set/labels/a.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("3 0.5 0.5 0.1 0.1\n")
    words = ("detect", "photos", "--labels", "star", "--yolo", "set")
    done = paligemma(*words)
    assert (done.status, "a file that is there is kept, got set/labels/a.txt" in done.err) == (
        *(2, True),
    )
    assert mine.read_text() == "3 0.5 0.5 0.1 0.1\n"
    assert paligemma(*words, "--overwrite").status == 0
    assert mine.read_text().startswith("0 ")


def test_boxes_without_size_are_counted_once(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    done = paligemma("detect", "photos", "--labels", "star", "--coco", "o.json", "--yolo", "y")
    said = [line for line in done.err.splitlines() if "no height or width" in line]
    assert said == [
        "paligemma: 3 boxes have no height or width and are left out of COCO and YOLO files"
    ]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
@pytest.mark.parametrize("words", [("photos",), ("photos/**/*.*",), ("**/*.*",)])
def test_links_are_followed_and_each_folder_is_read_once(
    paligemma: Run, photos: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    Path(".elsewhere").mkdir()
    shutil.copy(photos / "b.png", ".elsewhere/d.png")
    (photos / "linked").symlink_to(tmp_path / ".elsewhere")
    for name in ("up", "again", "once-more"):  # 2 to the 40th paths, for who follows them all
        (photos / "more" / name).symlink_to("..")
    done = paligemma("read", *words, "--max-new-tokens", "2")
    names = sorted(line.split(": ")[0] for line in done.out.splitlines())
    assert names == [f"photos/{name}" for name in ("a.jpg", "b.png", "linked/d.png", "more/c.png")]


def test_a_folder_that_cannot_be_read_is_said(
    paligemma: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if os.path.basename(path) in refused:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = ["more"]
    done = paligemma("read", "photos", "--max-new-tokens", "2")
    assert (done.status, done.out.count("\n")) == (0, 2)
    assert "the folder 'photos/more' cannot be read: Permission denied" in done.err
    refused = ["photos"]
    done = paligemma("read", "photos")
    assert (done.status, "the folder 'photos' cannot be read" in done.err) == (2, True)


def test_the_videos_of_a_folder_are_left_out_with_a_notice(paligemma: Run, photos: Path) -> None:
    (photos / "film.mp4").write_bytes(b"no film")
    done = paligemma("read", "photos", "--max-new-tokens", "2")
    assert (done.status, done.out.count("\n")) == (0, 3)
    assert "its videos are left out: 1, such as photos/film.mp4" in done.err
    named = paligemma("read", "photos/*.mp4")
    assert (named.status, "film.mp4 cannot be recognised" in named.err) == (2, True)


def test_two_runs_never_write_the_same_files(
    paligemma: Run, photos: Path, answers: Answers
) -> None:
    words = ("detect", "photos", "--labels", "star", "--coco", "o.json")
    with one_writer(Path(), "o.json.part"):
        done = paligemma(*words)
        assert (done.status, "another process is writing to o.json.part" in done.err) == (2, True)
        assert paligemma(*words[:-1], "other.json").status == 0
    assert paligemma(*words).status == 0


@pytest.mark.parametrize(
    "row",
    [
        {"image": "photos/a.jpg", "size_wh": [1, 1], "detections": []},
        {"image": "photos/a.jpg", "stamp": None, "size_wh": 3, "detections": []},
        {"image": "photos/a.jpg", "stamp": None, "size_wh": [4, 3], "detections": [{"label": 1}]},
        {"image": "photos/a.jpg", "stamp": None, "size_wh": [4, 3], "detections": {"a": 1}},
    ],
)
def test_a_damaged_file_of_answers_is_said(
    paligemma: Run, photos: Path, answers: Answers, row: dict[str, Any]
) -> None:
    words = ("detect", "photos", "--labels", "star", "--coco", "o.json")
    answers.stop_at = 1
    assert paligemma(*words).status == 130
    with open("o.json.part", "a") as file:
        file.write(json.dumps(row) + "\n")
    done = paligemma(*words)
    assert (done.status, "o.json.part, line 3 is damaged" in done.err) == (2, True)
