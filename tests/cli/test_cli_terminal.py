"""No text from outside is obeyed by the terminal that shows it."""

from __future__ import annotations

import json
import logging
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import DESK
from tqdm import tqdm

from paligemma.cli.terminal import guarded_streams, visible
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import Detection, TextAnswer
from paligemma.pipeline.paligemma import PaliGemma

Run = Callable[..., Any]

# Title, colours, a cleared screen, bells, a carriage return, DEL, 8-bit CSI, a reversed name.
HOSTILE = "a\x1b]0;t\x07\x1b[2J\x1b[31m\x00\x08\x0b\r\x7f\x9b31mz\u202egnp.\u2066b\u2028c"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def test_what_is_obeyed_is_shown_and_all_else_stays() -> None:
    shown = visible(HOSTILE)
    assert shown.startswith(r"a\u001b]0;t\u0007\u001b[2J")
    assert not OBEYED.search(shown)
    plain = "Zeile 1\n\tZeile 2 \\ naïve 😀 日本語 \u0639\u200f \u200dé"
    assert visible(plain) == plain
    assert json.loads(visible(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


def test_every_control_of_unicode_but_tab_and_newline_is_shown() -> None:
    for number in range(0x3000):
        if unicodedata.category(chr(number)) == "Cc" and chr(number) not in "\n\t":
            assert visible(chr(number)) == f"\\u{number:04x}"


def test_answers_labels_and_names_of_files_are_shown_on_both_streams(
    paligemma: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = HOSTILE.replace("\x00", "") + ".png"
    picture = tmp_path / name
    picture.write_bytes(DESK.read_bytes())
    found = Detections(
        items=(Detection(label=HOSTILE, box_yxyx=(0, 0, 1, 1), image_wh=(640, 480)),),
        image_wh=(640, 480),
        rest=HOSTILE,
    )
    monkeypatch.setattr(PaliGemma, "ask", lambda *_, **__: found)
    monkeypatch.setattr(PaliGemma, "generate", lambda *_, **__: TextAnswer(text=HOSTILE))
    monkeypatch.setattr(PaliGemma, "stream", lambda *_, **__: iter(HOSTILE))
    (tmp_path / "out").mkdir()
    for words in (
        ("detect", picture, DESK, "star", "-o", tmp_path / "out"),
        ("answer", picture, "what?"),
        ("answer", picture, DESK, "what?"),
        ("generate", picture, "caption en"),
        ("read", tmp_path / ("missing" + name)),
        ("caption", picture, "--lang", HOSTILE.replace("\x00", "")),
        ("detect", picture, "star", "--thres" + name),
        ("detect", picture, "star", "--mode", name),
        ("detect", picture, "star", "--model", name),
        (name,),
    ):
        done = paligemma(*words)
        assert re.search(r"\\(u00|x)1b", done.out + done.err), words
        assert not OBEYED.search(done.out + done.err), words
    assert paligemma("answer", picture, "what?", "--json").json["text"] == HOSTILE


def test_the_logs_warnings_and_bars_of_the_whole_program_are_guarded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with guarded_streams():
        handler = logging.StreamHandler()
        record = logging.makeLogRecord({"msg": HOSTILE})
        handler.emit(record)
        sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "a.py", 1, line=""))
        sys.stdout.writelines([HOSTILE, "\n"])
        with tqdm(total=2, desc="outer"), tqdm(total=2, desc=HOSTILE) as bar:
            bar.update()
    printed = capsys.readouterr()
    assert printed.out == visible(HOSTILE) + "\n"
    # A bar may go back to the start of its line and to the line above, and no text of it may.
    assert "\r" in printed.err
    assert "\x1b[A" in printed.err
    assert not OBEYED.search(re.sub("\r|\x1b\\[A", "", printed.err))
