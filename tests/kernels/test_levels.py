"""Levels that this CPU may not have: emulated, they sum as plain C does, to the bit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paligemma.kernels import native

SOURCES = Path(native.__file__).parent
HERE = Path(__file__).with_name("levels")
NAMES = ("threads", "pack", "products", "inputs", "level", "plain", "avx2", "avx512", "neon")
ARM_COMPILER, ARM = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
# `make test-kernels` loads a sanitizer, into this process only, and takes its time.
IS_THOROUGH = native.VARIABLE in os.environ
ALONE = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

thorough = pytest.mark.skipif(not IS_THOROUGH, reason="`make test-kernels` looks at this")


def compiled(folder: Path, *command: str | Path) -> Path:
    """The program of levels/check_levels.c."""
    program = folder / "check_levels"
    options = ("-O1", "-pthread", "-Wno-psabi", "-I", SOURCES, "-o", program)
    subprocess.run([*command, HERE / "check_levels.c", *options, "-lm"], check=True, env=ALONE)
    return program


def sources(*names: str) -> list[Path]:
    return [SOURCES / f"{name}.c" for name in names]


def lines(*command: str | Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ALONE)
    return (done.stdout + done.stderr).splitlines()


def test_avx512_written_out_for_avx2_sums_as_plain_c_does(tmp_path: Path) -> None:
    library, compiler = native.library(), os.environ.get("CC", "gcc")
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64" or library is None:
        pytest.skip("AVX-512 is emulated where the compiled kernels run on Linux and x86-64")
    if library.pg_best_level() < 1:
        pytest.skip("AVX-512 is emulated by AVX2, which this CPU has not")
    if shutil.which(compiler) is None:
        pytest.skip("there is no C compiler")
    # What the program has takes the place of the same in the library.
    rest: list[str | Path] = [*sources("level", "avx512"), SOURCES / "_native.so"]
    if IS_THOROUGH:
        rest = [*SANITIZERS, *sources(*NAMES)]
    program = compiled(tmp_path, compiler, "-include", HERE / "emulated_avx512.h", *rest)
    assert lines(program) == ["AVX2: as plain C", "AVX-512: as plain C"]


@thorough
def test_neon_under_qemu_sums_as_plain_c_does(tmp_path: Path) -> None:
    if shutil.which(ARM_COMPILER) is None or shutil.which(ARM) is None:
        pytest.skip(f"NEON is emulated with {ARM_COMPILER} and {ARM}, which are not installed")
    program = compiled(tmp_path, ARM_COMPILER, "-static", *sources(*NAMES))
    assert lines(ARM, program) == ["NEON: as plain C"]
    assert lines(ARM, "-cpu", "cortex-a53", program) == ["no level but plain C"]


@thorough
@pytest.mark.parametrize("target", ["x86-64", "aarch64"])
def test_clang_takes_the_kernels(target: str) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    if target == "aarch64" and shutil.which(ARM_COMPILER) is None:
        pytest.skip("headers of a C library for aarch64 are not installed")
    arm = ("--target=aarch64-linux-gnu", "-march=armv8.2-a+dotprod")
    options = ("-fsyntax-only", "-Wno-psabi", *(arm if target == "aarch64" else ()))
    subprocess.run(["clang", *options, *SOURCES.glob("*.c")], check=True, env=ALONE)
