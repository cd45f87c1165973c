"""What commands write: nothing of the user's is replaced unasked, and answers come one by one."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folder import DESK

from paligemma.errors import ConfigError, ImageError
from paligemma.outputs.detections import Detections
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.pixels import PixelReader

Run = Callable[..., Any]
SHORT = ("--max-new-tokens", "2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DESK, tmp_path / "holiday.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (("detect", "holiday.jpg", "star", "-o", "."), "holiday.png"),
        (("detect", "holiday.jpg", "star", "-o", "mine.png"), "mine.png"),
        (("caption", "holiday.jpg", DESK, "-o", "."), "desk.png"),
        (("generate", "holiday.jpg", "ocr", "-o", "text.png"), "text.png"),
        (("inspect", "holiday.jpg", "ocr", "-o", "."), "attention.png"),
        (("inspect", "holiday.jpg", "ocr", "-o", "."), "picture_1.png"),
        (("demo", "holiday.jpg", "--output-dir", "."), "segment.png"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else value,
)
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_that_the_program_did_not_write_is_kept_unless_the_user_says_otherwise(
    paligemma: Run, here: Path, words: tuple[object, ...], written: str, kind: str
) -> None:
    elsewhere = here / "elsewhere.txt"
    elsewhere.write_text("precious")
    target = here / written
    if kind == "file":
        target.write_text("precious")
    else:
        target.symlink_to(elsewhere)
    refused = paligemma(*words, *(SHORT if words[0] not in ("inspect", "demo") else ()))
    assert (refused.status, refused.out) == (2, "")
    assert f"'{written}' was not written by this program" in refused.err
    assert target.read_text() == elsewhere.read_text() == "precious"
    if words[0] == "demo":
        return  # five answers for the sake of one option
    more = () if words[0] == "inspect" else SHORT
    assert paligemma(*words, *more, "--overwrite").status == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert not target.is_symlink()
    assert elsewhere.read_text() == "precious"
    # What it wrote itself it may write again.
    assert paligemma(*words, *more).status == 0


def test_an_empty_name_of_an_output_is_no_name_of_a_folder(paligemma: Run, here: Path) -> None:
    for words in (
        ("detect", "holiday.jpg", "star", "-o", ""),
        ("inspect", "holiday.jpg", "ocr", "-o", ""),
        ("demo", "--output-dir", ""),
        ("convert", "tiny", ""),
        ("train", "codec", "--output", ""),
        ("train", "tiny", "--output", ""),
        ("eval", "scenes", "--output", ""),
    ):
        done = paligemma(*words)
        assert done.status == 2, words
        assert "an empty name" in done.err
    assert [path.name for path in here.iterdir()] == ["holiday.jpg"]


def test_answers_are_printed_as_they_come_and_none_is_kept(
    paligemma: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[np.ndarray]] = []
    lines_before = []
    load, ask = PaliGemma.open_picture, PaliGemma.ask

    def watched(self: PaliGemma, source: Any, **options: Any) -> Any:
        picture = load(self, source, **options)
        assert sum(one() is not None for one in seen) <= 1
        seen.append(weakref.ref(picture))
        return picture

    def counted(self: PaliGemma, *args: Any, **options: Any) -> Any:
        sys.stdout.flush()
        lines_before.append(len(out.read_text().splitlines()))
        return ask(self, *args, **options)

    out = tmp_path / "out.json"
    monkeypatch.setattr(PaliGemma, "open_picture", watched)
    monkeypatch.setattr(PaliGemma, "ask", counted)
    with monkeypatch.context() as patch, open(out, "w") as file:
        patch.setattr(sys, "stdout", file)
        paligemma("detect", *[DESK] * 5, "star", *SHORT, "--json")
    assert lines_before == [0, 2, 3, 4, 5]
    assert len(json.loads(out.read_text())["results"]) == 5


def test_what_was_answered_before_a_fault_is_complete_json(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, count = PaliGemma.ask, iter(range(9))

    def failing(self: PaliGemma, *args: Any, **options: Any) -> Any:
        number = next(count)
        if number == 1:
            raise ConfigError("logits must be numbers")
        if number == 3:
            raise KeyboardInterrupt
        return ask(self, *args, **options)

    monkeypatch.setattr(PaliGemma, "ask", failing)
    done = paligemma("detect", *[DESK] * 5, "star", *SHORT, "--json")
    assert done.status == 130
    assert [("error" in one) for one in done.json["results"]] == [False, True, False]


def test_a_fault_of_the_question_is_told_once(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: PaliGemma, *args: Any, **options: Any) -> Any:
        raise ConfigError("the question is at fault")

    monkeypatch.setattr(PaliGemma, "ask", failing)
    done = paligemma("detect", *[DESK] * 5, "star", "--json")
    assert (done.status, done.out) == (2, "")
    assert done.err.count("the question is at fault") == 1


def test_objects_and_encoded_pictures_of_files_hold_no_picture_in_memory(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir)
    path = tmp_path / "a.png"
    shutil.copy(DESK, path)
    seen: list[weakref.ref[np.ndarray]] = []
    load = PixelReader.load

    @functools.wraps(load)
    def watched(*args: Any, **options: Any) -> Any:
        picture = load(*args, **options)
        seen.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(PixelReader, "load", watched)
    sources = (path, str(path), path.read_bytes())
    found = [pg.encode_image(source).ask("detect star", max_new_tokens=2) for source in sources]
    batch = pg.encode_images([path] * 3)
    assert {one() for one in seen} == {None}
    for one in found:
        assert isinstance(one, Detections)
        assert one._repr_png_() is not None
        assert pickle.loads(pickle.dumps(one)).picture.shape == (480, 640, 3)
    path.unlink()
    assert found[0]._repr_png_() is None
    assert batch[0].image_wh == (640, 480)
    with pytest.raises(ImageError, match="was changed or removed since"):
        found[0].draw()
    black = np.zeros((60, 80, 3), np.uint8)
    assert pg.detect(black, "star", max_new_tokens=2).draw() is not None


def test_the_demo_lays_transparent_parts_on_the_asked_background(
    paligemma: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def load(image: str, *, background: object = None) -> None:
        asked.append(background)
        raise ImageError("read")

    monkeypatch.setattr("paligemma.processing.image.load_image", load)
    for words in ((), ("--background", "none"), ("--background", "#102030")):
        assert paligemma("demo", "holiday.jpg", *words).status == 2
    assert asked == [None, "none", "#102030"]
