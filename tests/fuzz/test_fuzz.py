"""A short run of every fuzzer, and that the frame finds what it is for."""

from __future__ import annotations

import importlib
import pickle
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fuzz.__main__ import FUZZERS
from fuzz.frame import end_of, fuzz
from fuzz.pictures import sound_pictures

from paligemma.errors import ImageError
from paligemma.processing.image import load_image

_NUM_TRIED = {"pictures": 60, "answers": 60, "bodies": 100, "uploads": 100}


# Starlette leaves the file of a form without an end to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FUZZERS)
def test_hostile_inputs_are_taken_or_refused(name: str) -> None:
    if name in ("bodies", "uploads"):
        pytest.importorskip("fastapi", reason="needs the extra serve")
    fuzzer: Any = importlib.import_module(f"fuzz.{name}")
    ends = []
    for number in range(_NUM_TRIED.get(name, 4)):
        what, given = fuzzer.make(random.Random(f"1/{number}"))
        raised, is_refused = end_of(fuzzer.attempt, given)
        assert is_refused or not raised, f"{what}: {raised}"
        ends.append(is_refused)
    assert any(ends) or name == "answers"


def test_every_format_is_read_while_it_is_sound() -> None:
    assert len(sound_pictures()) >= 20
    for name, data in sound_pictures().items():
        assert load_image(data).shape[2] == 3, name


def _misbehave(given: int) -> None:
    if given == 1:
        raise ImageError("refused")
    if given == 2:
        raise ValueError("not ours")
    if given == 3:
        time.sleep(60)
    if given == 4:
        raise SystemExit(3)


def _counted(rng: random.Random) -> tuple[str, int]:
    return "a number", next(_NUMBERS, 0)


_NUMBERS = iter([0, 1, 2, 3, 4])


def test_a_foreign_error_is_a_crash_and_a_try_without_end_a_hang(tmp_path: Path) -> None:
    numbers: Any = SimpleNamespace(NAME="numbers", MAX_MB=512, make=_counted, attempt=_misbehave)
    report = fuzz(numbers, seed=0, seconds=0.5, try_s=0.5, kept=tmp_path)
    assert [line.partition(" (")[0] for line in report.crashes] == [
        "a number: ValueError: 'not ours'"
    ]
    assert report.hangs == [f"a number: no end [{tmp_path / 'numbers-0-3.pickle'}]"]
    assert pickle.loads((tmp_path / "numbers-0-2.pickle").read_bytes()) == 2
    assert report.num_refused == 1
    assert "crashes 1  hangs 1" in str(report)


@pytest.mark.parametrize("name", FUZZERS)
def test_a_seed_gives_the_same_inputs_again(name: str) -> None:
    fuzzer: Any = importlib.import_module(f"fuzz.{name}")
    first, second = ([fuzzer.make(random.Random(f"5/{k}")) for k in range(5)] for _ in "ab")
    assert first == second
