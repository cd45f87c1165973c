"""A short run of the fuzzer of pictures, and that it finds what it is for."""

from __future__ import annotations

import random
import time

from fuzz.frame import fuzz
from fuzz.pictures import make, run, sound_pictures

from paligemma.errors import ImageError
from paligemma.processing.image import load_image


def test_damaged_pictures_are_read_or_refused_within_their_time_and_memory() -> None:
    report = run(seed=0, seconds=1.5)
    assert report.is_clean, str(report)
    assert 0 < report.num_refused < report.num_tried
    assert report.peak_mb < 400


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


def _counted(rng: random.Random) -> tuple[str, int]:
    return "a number", next(_NUMBERS, 0)


_NUMBERS = iter([0, 1, 2, 3])


def test_a_foreign_error_is_a_crash_and_a_try_without_end_a_hang() -> None:
    report = fuzz("numbers", _counted, _misbehave, seed=0, seconds=0.5, try_s=0.5, max_mb=512)
    assert report.crashes == ["input 2, a number: ValueError: not ours"]
    assert report.hangs == ["input 3, a number"]
    assert report.num_refused == 1
    assert "crashes 1, hangs 1" in str(report)


def test_a_seed_gives_the_same_inputs_again() -> None:
    first, second = ([make(random.Random(f"5/{number}")) for number in range(20)] for _ in "ab")
    assert first == second
