"""Levels that this CPU may not have: emulated, they sum as plain C does, to the bit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from paligemma.kernels import native

SOURCES = Path(native.__file__).parent
HERE = Path(__file__).with_name("levels")
NAMES = ("threads", "pack", "products", "inputs", "level", "plain", "avx2", "avx512", "neon")
ARM_COMPILER, ARM = "aarch64-linux-gnu-gcc", "qemu-aarch64"
# The sanitizer that `make test-kernels` loads is for this process only.
ALONE = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def compiled(compiler: str, folder: Path, *options: str) -> Path:
    """The program of levels/check_levels.c."""
    program = folder / "check_levels"
    files = [HERE / "check_levels.c", *(SOURCES / f"{name}.c" for name in NAMES)]
    command = [compiler, "-O1", "-pthread", "-Wno-psabi", *options, "-I", SOURCES, *files]
    subprocess.run([*command, "-o", program, "-lm"], check=True, env=ALONE)
    return program


def lines(*command: str | Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ALONE)
    return done.stdout.splitlines()


def test_avx512_written_out_for_avx2_sums_as_plain_c_does(tmp_path: Path) -> None:
    library, compiler = native.library(), os.environ.get("CC", "gcc")
    if platform.machine() not in ("x86_64", "AMD64") or library is None:
        pytest.skip("AVX-512 is emulated where the compiled kernels run on x86-64")
    if library.pg_best_level() < 1:
        pytest.skip("AVX-512 is emulated by AVX2, which this CPU has not")
    if shutil.which(compiler) is None:
        pytest.skip("there is no C compiler")
    program = compiled(compiler, tmp_path, "-include", str(HERE / "emulated_avx512.h"))
    assert lines(program) == ["AVX2: as plain C", "AVX-512: as plain C"]


def test_neon_under_qemu_sums_as_plain_c_does(tmp_path: Path) -> None:
    if shutil.which(ARM_COMPILER) is None or shutil.which(ARM) is None:
        pytest.skip(f"NEON is emulated with {ARM_COMPILER} and {ARM}, which are not installed")
    program = compiled(ARM_COMPILER, tmp_path, "-static")
    assert lines(ARM, program) == ["NEON: as plain C"]
    assert lines(ARM, "-cpu", "cortex-a53", program) == ["no level but plain C"]


@pytest.mark.parametrize("sources", [sorted(SOURCES.glob("*.c"))], ids=["every file"])
@pytest.mark.parametrize(
    "compiler", [["clang"], ["clang", "--target=aarch64-linux-gnu", "-march=armv8.2-a+dotprod"]]
)
def test_clang_takes_the_kernels(compiler: list[str], sources: list[Path]) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    if len(compiler) > 1 and shutil.which(ARM_COMPILER) is None:
        pytest.skip("the headers of another processor's C library are not installed")
    subprocess.run([*compiler, "-fsyntax-only", "-Wno-psabi", *sources], check=True, env=ALONE)
