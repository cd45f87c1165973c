"""`paligemma chat`: lines from a pipe, and a person at a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_folder import DESK

from paligemma.cli.line_reader import MAX_LINE_CHARS
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import Detection, TextAnswer
from paligemma.pipeline import paligemma as facade
from paligemma.pipeline.engine import Engine

Run = Callable[..., Any]


@pytest.fixture
def typed(paligemma: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """typed("ocr", "/json") -> what a chat printed that got these lines from a pipe."""

    def run(*lines: str | bytes, options: tuple[object, ...] = (), picture: object = DESK) -> Any:
        raw = b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        return paligemma("chat", picture, "--max-new-tokens", "6", *options)

    return run


def test_each_line_gets_the_answer_that_its_own_command_gives(typed: Run, paligemma: Run) -> None:
    done = typed("what is it?", "caption en", "ocr", "answer de was ist es?")
    assert done.status == 0
    alone = [
        paligemma(*words, "--max-new-tokens", "6").out
        for words in (
            ("answer", DESK, "what is it?"),
            ("caption", DESK),
            ("read", DESK),
            ("answer", DESK, "was ist es?", "--lang", "de"),
        )
    ]
    assert done.out == "".join(alone)
    assert "> " not in done.out + done.err


def test_the_picture_is_encoded_once_until_another_is_asked(
    typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "an other").mkdir()
    other = tmp_path / "an other" / "red.png"
    Image.new("RGB", (30, 20), "red").save(other)
    encoded = []
    encode = Engine.encode
    monkeypatch.setattr(
        Engine,
        "encode",
        lambda self, pixels, **how: encoded.extend(pixels) or encode(self, pixels, **how),
    )
    done = typed("ocr", "caption en", "ocr", f"/picture '{other}'", "/json", "ocr", "/json")
    assert done.status == 2  # nothing was asked about the other picture when /json came
    assert len(encoded) == 2
    assert "30 x 20 px" in done.err
    assert "nothing was answered about this picture yet" in done.err
    assert json.loads(done.out.splitlines()[-1])["image"] == str(other)


def test_a_plain_question_is_sent_as_an_answer_prompt_and_that_is_said_once(typed: Run) -> None:
    done = typed("is it red?", "/json", "and now?", "/json", options=("--lang", "fr"))
    prompts = [json.loads(line)["prompt"] for line in done.out.splitlines() if line[:1] == "{"]
    assert prompts == ["answer fr is it red?", "answer fr and now?"]
    assert done.err.count("plain questions are asked as") == 1
    assert "'answer fr is it red?'" in done.err


PROMPTS = (
    *("caption en", "cap de", "describe fil", "ocr", "answer en why?", "question en red"),
    *("detect cat ; dog", "segment cat", "caption <loc0000><loc0000><loc1023><loc1023>"),
)
QUESTIONS = ("caption this", "describe the cat", "answer me", "read it", "segmentation?", "ocr it")


def test_prompts_are_sent_as_they_are_and_questions_that_begin_like_one_are_not(
    typed: Run,
) -> None:
    lines = [*PROMPTS, *QUESTIONS, *(f"/ask {line}" for line in QUESTIONS)]
    done = typed(*lines, options=("--json",))
    prompts = [json.loads(record)["prompt"] for record in done.out.splitlines()]
    assert prompts == [*PROMPTS, *(f"answer en {line}" for line in QUESTIONS), *QUESTIONS]


def test_what_cannot_be_done_is_a_sentence_and_the_chat_goes_on(typed: Run) -> None:
    done = typed(
        "x\x01y",
        b"\xff\xfe?",
        "/fly",
        "/save",
        "/json now",
        "/picture no-such.png",
        "/picture https://localhost/a.png",
        "/save " + str(DESK),
        "y" * 10_001,
        "z" * (3 * MAX_LINE_CHARS),
        "",
        "   ",
        "detect",
        "ocr",
        options=("--choices", "red ; blue"),
    )
    assert done.status == 2
    assert len(done.out.splitlines()) == 2  # what "detect" found, and "ocr"
    sentences = done.err.splitlines()
    for number, words in enumerate(
        (
            "U+0001",
            "U+DCFF",
            "no command '/fly'",
            "/save needs a text",
            "/json stands alone",
            "no-such.png",
            "--allow-url",
            "nothing was answered",
            "10000 characters, got 10001",
            f"{MAX_LINE_CHARS} characters",
            "names nothing to detect",
        )
    ):
        assert words in sentences[number]
    assert "Traceback" not in done.err


def test_each_prompt_gives_one_json_line_and_a_wrong_one_its_error(typed: Run) -> None:
    done = typed("ocr", "x\x01", "detect star", options=("--json",))
    good, bad, found = map(json.loads, done.out.splitlines())
    assert done.status == 2
    assert {"model", "image", "width", "height", "prompt", "text", "score"} == set(good)
    assert "U+0001" in bad["error"]
    assert bad["prompt"] == "x\x01"
    assert found["detections"] == []


def test_the_overlay_and_the_tokens_of_the_last_answer(
    typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(DESK.read_bytes())
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"mine")
    done = typed(
        "ocr",
        f"/save {tmp_path / 'over.png'}",
        f"/save {picture}",
        f"/save {kept}",
        f"/save {tmp_path / 'over.jpg'}",
        f"/save {tmp_path / 'none' / 'over.png'}",
        "/tokens",
        "/json",
        picture=picture,
    )
    with Image.open(tmp_path / "over.png") as image:
        assert image.size >= (640, 480)
    assert picture.read_bytes() == DESK.read_bytes()
    assert kept.read_bytes() == b"mine"
    assert len(done.err.splitlines()) == 6  # the answer was cut, one was written, four refused
    *_, record = done.out.splitlines()
    tokens = [re.fullmatch(r" *(\d+) +([01]\.\d{4})  '(.*)'", x) for x in done.out.splitlines()]
    assert sum(map(bool, tokens)) == 6
    assert json.loads(record)["text"]


def test_boxes_that_come_unasked_are_shown_as_a_table_and_words_before_them_once(
    typed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Detection(label="cat", box_yxyx=(0.0, 0.0, 0.5, 0.5), image_wh=(640, 480), score=0.5)
    found = Detections(items=(item,), image_wh=(640, 480))

    def scripted(answer: Any, *pieces: str) -> None:
        def ask(pg: Any, image: Any, prompt: str, on_token: Any, **how: Any) -> Any:
            from paligemma.pipeline.following import WrittenToken

            for number, text in enumerate(pieces):
                on_token(WrittenToken(id=number, text=text, logprob=0.0))
            return answer

        monkeypatch.setattr("paligemma.pipeline.following.follow", ask)

    scripted(found, "here", " <loc", "0000>")
    assert typed("where is the cat?").out.splitlines()[-1] == str(found)
    scripted(found, "see", "<loc0000>", "<loc0000>", " cat")
    assert typed("where is the cat?").out == f"see\n{found}\n"
    scripted(TextAnswer(text="at <loc0000> it"), "at ", "<loc0000>", " it")
    assert typed("where is the cat?").out == "at <loc0000> it\n"


def test_beams_and_choices_answer_as_elsewhere(typed: Run, paligemma: Run) -> None:
    for how in (("--beams", "2"), ("--choices", "red ; blue"), ("--best-of", "2", "--top-k", "9")):
        alone = paligemma("run", DESK, "answer en what is it?", "--max-new-tokens", "6", *how).out
        assert typed("what is it?", "/tokens", options=how).out.startswith(alone)


def test_quit_ends_and_nothing_after_it_is_asked(typed: Run) -> None:
    done = typed("/quit", "ocr")
    assert (done.status, done.out) == (0, "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("no-such.png",), "no-such.png"),
        ((DESK, "--lang", "English"), "language"),
        ((DESK, "--max-objects", "3"), "--constrain"),
        ((DESK, "--frame", "7"), "frame"),
    ],
)
def test_what_is_wrong_at_the_start_ends_the_program(
    paligemma: Run, words: tuple[object, ...], sentence: str
) -> None:
    done = paligemma("chat", *words)
    assert done.status == 2
    assert done.out == ""
    assert sentence in done.err


def test_ctrl_c_ends_a_chat_whose_lines_come_from_a_pipe(
    typed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        facade.PaliGemma, "question", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
    )
    assert typed("ocr", "ocr").status == 130


class Terminal:
    """The program at a terminal of its own."""

    def __init__(self, words: list[str], cache: Path) -> None:
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paligemma", *words],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**os.environ, "XDG_CACHE_HOME": str(cache), "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )
        os.close(side)
        self.seen = ""

    def send(self, text: str) -> None:
        time.sleep(0.3)  # a prompt is printed before its line is read
        os.write(self._main, text.encode())

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> str:
        """What was printed up to the pattern; the next call looks behind it."""
        end = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, (pattern, self.seen)
            if select.select([self._main], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._main, 65_536).decode(errors="replace")
                except OSError:  # the program has ended
                    assert re.search(pattern, self.seen), (pattern, self.seen)
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def close(self) -> int:
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._main)


@pytest.fixture
def terminal(tiny_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*options: str) -> Terminal:
        words = ["chat", str(DESK), "--model", str(tiny_dir), "--max-new-tokens", "4000", *options]
        opened.append(Terminal(words, tmp_path / "cache"))
        return opened[-1]

    yield start
    for one in opened:
        one.process.kill()
        one.process.wait()


def test_a_person_asks_edits_stops_an_answer_and_ends(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    pytest.importorskip("readline")
    chat = terminal()
    assert "640 x 480 px; ask, or /help" in chat.wait_for("> ")
    chat.send("/helq\x08p\n")  # a backspace edits the line
    assert "/picture FILE" in chat.wait_for("Ctrl-C stops an answer\r\n> ")
    chat.send("caption en\n")
    chat.wait_for(r"caption en\r\n[\s\S]{20}")  # the answer has begun, of 4,000 tokens
    chat.send("\x03")
    chat.wait_for(r"stopped; .* ends the chat\r\n> ")
    chat.send("/json\n")  # the stopped answer is none, and the chat goes on
    chat.wait_for(r"nothing was answered about this picture yet.*\r\n> ")
    chat.send("half a line")
    chat.wait_for("half a line")
    chat.send("\x03")
    chat.wait_for(r"stopped; .*\r\n> ")
    chat.send("\x03")
    assert chat.close() == 130
    history = tmp_path / "cache" / "paligemma" / "chat_history"
    assert history.read_text().splitlines() == ["/help", "caption en", "/json"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_d_ends_quietly_and_without_history_nothing_is_kept(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    chat = terminal("--no-history", "--choices", "red ; blue")
    chat.wait_for("> ")
    chat.send("what is it?\n")
    chat.wait_for(r"(red|blue)\r\n> ")
    chat.send("\x04")
    assert chat.close() == 0
    assert not (tmp_path / "cache").exists()
