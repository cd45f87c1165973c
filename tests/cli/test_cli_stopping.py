"""A program that is stopped tidies up, says how to go on, and ends as shells expect."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import DESK

from paligemma.cli.options import ModelChoice
from paligemma.tiny import training
from paligemma.weights import save

Run = Callable[..., Any]


def stop_when_called(number: int) -> Callable[..., None]:
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    return stop


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_conversion_that_is_stopped_leaves_nothing_and_names_the_command(
    paligemma: Run,
    tiny_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    monkeypatch.setattr(save, "_write_safetensors", stop_when_called(number))
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    done = paligemma("convert", tiny_dir, tmp_path / "a model", "--dtype", "bfloat16")
    assert done.status == status
    assert list(tmp_path.iterdir()) == []
    assert "the same command begins anew, as nothing was written" in done.err
    assert f"paligemma convert {tiny_dir} '{tmp_path}/a model' --dtype bfloat16" in done.err
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == handlers


@pytest.mark.parametrize(
    "words", [("train", "tiny", "--quiet"), ("eval", "scenes", "--limit", "1")], ids=" ".join
)
def test_work_that_goes_on_says_with_which_command(
    paligemma: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(training, "train_tiny", stop_when_called(signal.SIGINT))
    monkeypatch.setattr(ModelChoice, "load", stop_when_called(signal.SIGINT))
    done = paligemma(*words, "--output", tmp_path / "run")
    assert done.status == 130
    assert "the same command goes on where it stopped" in done.err
    assert f"  paligemma {' '.join(words)} --output {tmp_path}/run\n" in done.err


def test_a_hangup_that_the_caller_ignores_ends_nothing(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ModelChoice.load

    def hang_up(self: ModelChoice) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return load(self)

    monkeypatch.setattr(ModelChoice, "load", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert paligemma("read", DESK, "--max-new-tokens", "2").status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_cut_the_tidying_up(
    paligemma: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(save, "_write_safetensors", stop)
    assert paligemma("convert", tiny_dir, tmp_path / "model").status == 143
    assert list(tmp_path.iterdir()) == []
