"""The level of the processor is taken only where it computes what plain C computes."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from tiny_folder import DESK

from paligemma.kernels import native

NAMES = (b"plain C", b"AVX2", b"AVX-512")


class Fake:
    """A library whose levels differ from plain C by so much each."""

    def __init__(self, *differences: float) -> None:
        self.differences, self.number = differences, len(differences) - 1

    def pg_level(self) -> int:
        return self.number

    def pg_set_level(self, wanted: int) -> None:
        self.number = wanted

    def pg_level_difference(self) -> float:
        return self.differences[self.number]

    def pg_level_name(self, number: int) -> bytes:
        return NAMES[number]


def level_left(*differences: float) -> int:
    fake = Fake(*differences)
    native.leave_a_wrong_level(cast(ctypes.CDLL, fake))
    return fake.number


@pytest.mark.parametrize("difference", [1e-3, float("inf"), float("nan")])
def test_a_level_that_multiplies_otherwise_is_left_for_the_next_with_a_warning(
    difference: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert level_left(0, 2e-7, difference) == 1
    assert "AVX-512 differ from plain C" in caplog.text
    assert "AVX2 is used" in caplog.text
    assert level_left(0, difference, difference) == 0
    assert level_left(0, difference) == 0


def test_a_level_within_rounding_stays(caplog: pytest.LogCaptureFixture) -> None:
    assert level_left(0, 1.0, 2e-7) == 2
    assert not caplog.text


def test_a_level_that_the_processor_has_not_is_not_taken() -> None:
    library = native.library()
    if library is None:
        pytest.skip(native.describe())
    best = library.pg_best_level()
    library.pg_set_level(best + 1)
    assert library.pg_level() == best
    assert native.level_name(library, best)
    assert native.level_name(library, 100) is native.level_name(library, -1) is None


def test_the_check_computes_at_both_levels_and_leaves_the_level_as_it_was(level: int) -> None:
    library = native.library()
    assert library is not None
    difference = library.pg_level_difference()
    assert library.pg_level() == level
    assert 0 <= difference <= 1e-6
    assert ("checked" in native.describe()) == bool(level)


@pytest.mark.parametrize("integers", [0, 8, 16])
def test_the_speed_of_products_is_known_where_a_level_has_vectors(
    integers: int, level: int
) -> None:
    speed = native.on_all_threads().pg_peak_speed(integers, 10_000)
    assert (1e6 < speed < 1e15) if level else speed == 0


def test_a_library_of_other_sources_is_not_loaded(tmp_path: Path) -> None:
    if native.library() is None or os.environ.get(native.VARIABLE):
        pytest.skip("the library that the installation compiles is not in use")
    folder = Path(native.__file__).parent
    for path in (*folder.glob("*.[ch]"), folder / "_native.so"):
        shutil.copy(path, tmp_path)
    code = "from paligemma.kernels import native; print(native.library() is not None)"
    named = {**os.environ, native.VARIABLE: str(tmp_path / "_native.so")}

    def loads() -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code], env=named, capture_output=True, text=True, check=True
        )
        return done.stdout.strip(), done.stderr

    assert loads() == ("True", "")
    with (tmp_path / "step.h").open("a") as file:
        file.write("/* another field */")
    found, said = loads()
    assert found == "False"
    assert "built from other sources" in said


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ("gone.so", "which is not there"),
        ("text.so", "which is not a library of this version"),
        (".", "which is not a library of this version"),
    ],
)
def test_a_packed_model_says_that_the_named_library_is_not_in_use(
    named: str, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "text.so").write_text("no library")
    command = ["answer", str(DESK), "what color is the star?", "--model", "tiny", "--quant", "int8"]
    done = subprocess.run(
        [sys.executable, "-m", "paligemma", *command],
        env={**os.environ, native.VARIABLE: str(tmp_path / named)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.strip() == "blue"
    assert done.stderr.count("torch computes packed weights, slowly: $PALIGEMMA_KERNELS is") == 1
    assert f"{fault}; name another, or unset it" in done.stderr


def test_the_library_that_was_not_built_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native.library.cache_clear()
    try:
        assert native.library() is None
        assert "were not built; install with a C compiler" in caplog.text
        assert "were not built; install with a C compiler" in native.describe()
    finally:
        native.library.cache_clear()


def test_no_list_of_loaded_libraries_leaves_the_kernels_with_threads_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(self: Path, **options: object) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", absent)
    native._openmp_of_torch.cache_clear()
    try:
        assert native._openmp_of_torch() is None
    finally:
        monkeypatch.undo()
        native._openmp_of_torch.cache_clear()
