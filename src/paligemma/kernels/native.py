"""The compiled kernels, loaded by ctypes; every other module asks here whether they are there.

The library is C: `pack.c`, `products.c`, `attend.c` and `step.c`, with a file for each level of
the processor that products use (`plain.c`, `avx2.c`, `avx512.c`, `neon.c`). It is built when the
package is installed if there is a compiler. Nothing else depends on it: without it products are
torch's.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import sys
from ctypes import c_char_p, c_double, c_float, c_int, c_long, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

KINDS = {"f32": 0, "bf16": 1, "fp8": 2, "int8": 3, "int4": 4, "nf4": 5}
# "off" leaves the library alone; a path takes another one.
VARIABLE = "PALIGEMMA_KERNELS"
# Of products of one level and of plain C, beside the norms of what is multiplied: float32 rounds to
# 6e-8, and sums of 70 products in another order differ by less than this.
_MOST_DIFFERENCE = 1e-6
_HUGE = 1 << 21
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


class Matrix(ctypes.Structure):
    """`pg_matrix` of kernels.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("data", c_void_p),
        ("scale", c_void_p),
    )


_log = logging.getLogger(__name__)
_MATRIX = ctypes.POINTER(Matrix)
# Name -> type of the result, types of the arguments.
_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "pg_sources": (c_char_p, ()),
    "pg_level": (c_int, ()),
    "pg_best_level": (c_int, ()),
    "pg_set_level": (None, (c_int,)),
    "pg_level_name": (c_char_p, (c_int,)),
    "pg_level_difference": (c_float, ()),
    "pg_use_openmp": (None, (c_void_p, c_void_p, c_void_p)),
    "pg_set_num_threads": (None, (c_int,)),
    "pg_advise_huge": (None, (c_void_p, c_size_t)),
    "pg_read_speed": (c_double, (c_void_p, c_size_t)),
    "pg_peak_speed": (c_double, (c_int, c_long)),
    "pg_pack": (None, (_MATRIX, c_void_p, c_size_t, c_int)),
    "pg_unpack": (None, (_MATRIX, c_int, c_int, c_void_p)),
    "pg_unpack_rows": (None, (_MATRIX, c_void_p, c_int, c_void_p)),
    "pg_attend": (None, (c_void_p,)),
    "pg_multiply": (
        None,
        (_MATRIX, c_void_p, c_size_t, c_void_p, c_void_p, c_size_t, c_int),
    ),
    "pg_float_tile": (None, (c_void_p, c_void_p, c_int, c_void_p)),
    "pg_set_bytes_a_thread": (None, (c_size_t,)),
    "pg_step_scratch": (c_size_t, (c_void_p, c_int, c_int)),
    "pg_step": (None, (c_void_p, c_void_p)),
}


def _file() -> Path | None:
    """The library, or None where it is switched off."""
    named = os.environ.get(VARIABLE, "")
    if named == "off":
        return None
    return Path(named) if named else Path(__file__).with_name("_native.so")


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they are switched off or, with a warning, not to be had."""
    file = _file()
    if file is None:
        return None
    if not file.exists():
        _log.warning("torch computes packed weights, slowly: %s", _why_not(file))
        return None
    try:
        found = ctypes.CDLL(str(file))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # not a library of this system, or one of another version
        _log.warning("torch computes packed weights, slowly: %s", _why_not(file))
        return None
    if is_of_other_sources(found.pg_sources().decode(), file.parent):
        _log.warning(
            "the compiled kernels were built from other sources than those beside them, so torch "
            "computes, slowly; install the package again"
        )
        return None
    leave_a_wrong_level(found)
    openmp = _openmp_of_torch()
    if openmp is not None:
        found.pg_use_openmp(*(ctypes.cast(getattr(openmp, name), c_void_p) for name in _OPENMP))
    return found


def _why_not(file: Path) -> str:
    """Why there are no kernels, with the remedy."""
    is_there = file.exists()
    if os.environ.get(VARIABLE):
        fault = "is not a library of this version" if is_there else "is not there"
        return f"${VARIABLE} is {str(file)[:100]!r}, which {fault}; name another, or unset it"
    if is_there:
        return "the compiled kernels do not load; install again"
    return "the compiled kernels were not built; install with a C compiler"


def is_of_other_sources(built_from: str, folder: Path) -> bool:
    """Whether C sources lie beside a library, as in a clone, and it was built from others.

    Args:
        built_from: the fingerprint of its sources; empty where it has none.
    """
    sources = sorted(folder.glob("*.[ch]"))
    if not sources or not built_from:
        return False
    found = hashlib.sha256()
    for path in sources:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16] != built_from


def level_name(found: ctypes.CDLL, number: int) -> str | None:
    """What the library calls a level, 0 (plain C) being the lowest; None where it has no such."""
    name: bytes | None = found.pg_level_name(number)
    return None if name is None else name.decode()


def leave_a_wrong_level(found: ctypes.CDLL) -> None:
    """Take the best level of this processor that multiplies as plain C does; a millisecond."""
    while not (difference := found.pg_level_difference()) <= _MOST_DIFFERENCE:
        wrong = found.pg_level()
        found.pg_set_level(wrong - 1)
        _log.warning(
            "products by %s differ from plain C by %.2g on this processor; %s is used, more slowly",
            level_name(found, wrong),
            difference,
            level_name(found, wrong - 1),
        )


def on_all_threads() -> ctypes.CDLL:
    """The kernels, set to as many threads as torch has.

    Raises:
        RuntimeError: there are none.
    """
    found = library()
    if found is None:
        raise RuntimeError(f"the compiled kernels are not there: {describe()}")
    found.pg_set_num_threads(torch.get_num_threads())
    return found


def in_huge_pages(empty: Tensor) -> Tensor:
    """A large tensor that nothing has touched yet, in huge pages where the system has them.

    A product of many rows otherwise costs a fault for every 4 kB, a tenth of the time at 896 px.
    """
    size, found = empty.numel() * empty.element_size(), library()
    if found is not None and size >= _HUGE:
        found.pg_advise_huge(empty.data_ptr(), size)
    return empty


def describe() -> str:
    """In words which kernels are in use, and why not the compiled ones where they are not."""
    file, found = _file(), library()
    if file is None:
        return f"torch's products, as ${VARIABLE} is off"
    if found is None:
        return f"torch's products; {_why_not(file)}"
    pool = "torch's threads" if _openmp_of_torch() is not None else "threads of their own"
    number = found.pg_level()
    level = f"{level_name(found, number)}{', checked' if number else ''}"
    return f"compiled kernels ({level}, {pool})"


@cache
def _openmp_of_torch() -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch has loaded: two pools of threads would fight for cores."""
    for path in _loaded_libraries():
        if path.name.startswith("libgomp"):
            try:
                loaded = ctypes.CDLL(str(path))
            except OSError:  # its file was replaced while it is in use
                return None
            return loaded if all(hasattr(loaded, name) for name in _OPENMP) else None
    return None


def _loaded_libraries() -> list[Path]:
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # /proc is not mounted
        return []
    return [Path(line.split(maxsplit=5)[5]) for line in lines if "/lib" in line]
