"""The program as a whole: quick to help, quiet when stopped, plain when something is wrong."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tiny_folder import DESK

from paligemma import cli
from paligemma.cli import COMMANDS
from paligemma.cli.options import ModelChoice

PROGRAM = [sys.executable, "-c", "from paligemma.cli import main; main()"]
ASKING = ("run", "caption", "answer", "read", "detect", "segment", "generate")


def test_help_takes_less_than_300_ms_and_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import os, sys\n"
        "from paligemma.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'PIL', 'sentencepiece', 'tqdm'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy), 'cpu:', sum(os.times()[:2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, cpu_s = done.stdout.splitlines()[-1].split(" cpu: ")
    assert heavy == "heavy: []"
    assert float(cpu_s) < 0.3


def test_the_help_names_every_command_with_one_line(paligemma: Callable[..., Any]) -> None:
    done = paligemma("--help")
    assert done.status == 0
    assert len(done.out) > 0
    for name, entry in COMMANDS.items():
        assert f"  {name} " in done.out
        assert entry.summary in done.out
        assert len(entry.summary) < 66


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_its_help_says_what_it_does(
    paligemma: Callable[..., Any], name: str
) -> None:
    entry = COMMANDS[name]
    command = getattr(importlib.import_module(f"paligemma.cli.{entry.module}"), entry.function)
    assert isinstance(command, click.Command)
    assert command.name == name
    done = paligemma(name, "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: paligemma {name}")
    assert command.help


@pytest.mark.parametrize("name", [*ASKING, "inspect", "convert", "doctor"])
def test_the_help_of_a_command_shows_an_example(paligemma: Callable[..., Any], name: str) -> None:
    assert f"\n  paligemma {name} " in paligemma(name, "--help").out


@pytest.mark.parametrize("name", ASKING)
def test_every_command_that_answers_takes_the_same_options(name: str) -> None:
    group = cli.main
    command = group.get_command(click.Context(group), name)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--output", "--model", "--mode", "--seed", "--beams"} <= options


def test_the_version_is_printed(paligemma: Callable[..., Any]) -> None:
    assert paligemma("--version").out.startswith("paligemma, version 0.")


@pytest.mark.parametrize(
    "args",
    [
        ("fly",),
        ("caption",),
        ("caption", "a.png", "--speed", "9"),
        ("run", "a.png", "ocr", "--top-k", "x"),
        ("detect", "a.png", "cat", "--threshold", "nan"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_why(
    paligemma: Callable[..., Any], args: tuple[str, ...]
) -> None:
    done = paligemma(*args)
    assert done.status == 2
    assert done.out == ""
    assert "Error: " in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("run", DESK), "PROMPT"),
        (("run", DESK, DESK), "PROMPT"),
        (("detect", DESK), "LABELS"),
        (("segment", DESK), "LABELS"),
        (("answer", DESK), "QUESTION"),
        (("generate", DESK, "--frames"), "PROMPT"),
        (("inspect", DESK), "PROMPT"),
        (("run", "ocr"), "IMAGE..."),
        (("run",), "IMAGE..."),
    ],
)
def test_what_is_missing_is_named(
    paligemma: Callable[..., Any], words: tuple[object, ...], missing: str
) -> None:
    done = paligemma(*words)
    assert (done.status, done.out) == (2, "")
    assert f"Missing argument '{missing}'." in done.err


def test_an_unexpected_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ModelChoice) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(ModelChoice, "load", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main(["caption", str(DESK)])


def test_an_interrupt_ends_quietly_with_130(
    paligemma: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: ModelChoice) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelChoice, "load", interrupted)
    done = paligemma("caption", DESK)
    assert done.status == 130
    assert (done.out, done.err.strip()) == ("", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROGRAM, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (1, -signal.SIGPIPE)


def test_without_a_model_named_the_embedded_one_is_used_and_a_note_says_so(
    paligemma: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PALIGEMMA_MODEL")
    chosen: list[str] = []

    def note(self: ModelChoice) -> None:
        chosen.append(self.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelChoice, "load", note)
    done = paligemma("caption", DESK)
    assert chosen == ["tiny"]
    assert "small embedded model, which knows drawn pictures only; choose another" in done.err
    assert "--model or PALIGEMMA_MODEL" in done.err
    paligemma("caption", DESK, "--model", "some/other")
    assert chosen == ["tiny", "some/other"]


def test_one_question_imports_no_compiler_and_nothing_else_it_does_not_need(tiny_dir: Path) -> None:
    code = (
        "import sys\n"
        "from paligemma.cli import main\n"
        f"main(['read', {str(DESK)!r}, '--model', {str(tiny_dir)!r}, '--max-new-tokens', '2'],\n"
        "     standalone_mode=False)\n"
        "idle = {'torch._dynamo', 'torch._inductor', 'sympy', 'scipy', 'transformers',\n"
        "        'huggingface_hub', 'tokenizers', 'paligemma.scenes', 'paligemma.train'}\n"
        "print('imported:', sorted(idle & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_nothing_is_one_sentence(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("paligemma: standard output cannot be written (No space left")


def test_an_error_of_the_system_elsewhere_is_one_sentence_that_names_the_file(
    paligemma: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ModelChoice) -> None:
        raise OSError(28, "No space left on device", "/full/disk")

    monkeypatch.setattr(ModelChoice, "load", broken)
    done = paligemma("caption", DESK)
    (line,) = done.err.splitlines()
    assert (done.status, done.out) == (1, "")
    assert line.startswith("paligemma: a file or the disk failed: No space left on device (/full/")
    assert "in broken\n" in paligemma("-v", "caption", DESK).err


def printed_as(encoding: str, monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """Standard output of the program where it has another encoding than UTF-8."""
    data = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(data, encoding=encoding))
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        sys.stdout.flush()
        assert not ended.value.code
        return data.getvalue().decode(encoding)


def test_output_that_is_not_utf8_loses_nothing(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIGEMMA_MODEL", str(tiny_dir))
    picture = tmp_path / "фото é.png"
    picture.write_bytes(DESK.read_bytes())
    shown = printed_as("cp1252", monkeypatch, "inspect", picture, "caption en")
    assert r"'\u2581en'" in shown
    record = printed_as("cp1252", monkeypatch, "inspect", picture, "caption en", "--json")
    assert [token["piece"] for token in json.loads(record)["tokens"]][2] == "▁en"
    words = ("read", picture, "--max-new-tokens", "2")
    assert json.loads(printed_as("cp1252", monkeypatch, *words, "--json"))["image"] == str(picture)
    lines = printed_as("cp1252", monkeypatch, *words, DESK)
    assert rf"{tmp_path}/\u0444\u043e\u0442\u043e é.png: " in lines


def test_warnings_wait_for_the_end_of_a_line_that_is_being_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = logging.makeLogRecord({"msg": "the answer was cut"})
    with cli.stderr_log.held():
        cli.stderr_log.emit(record)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "paligemma: the answer was cut\n"
    cli.stderr_log.emit(record)
    assert capsys.readouterr().err == "paligemma: the answer was cut\n"
