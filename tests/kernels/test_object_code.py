"""The object code of the inner loops: sums must stay in registers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from paligemma.kernels import native

TILES = [
    f"{level}_{name}"
    for level in ("avx2", "avx512")
    for name in [
        "wide",
        "tiles",
        *(f"{kind}_{rows}" for kind in native.KINDS for rows in range(1, 7)),
    ]
] + ["avx512_two_wide"]
FUNCTION = re.compile(r"[0-9a-f]+ <(\w+)>:")
INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(.*)")
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)\b")
# A vector register written to the stack: vmovaps %ymm0,-0x20(%rsp).
SPILL = re.compile(r"%[xyz]mm\d+,-?(0x[0-9a-f]+)?\(%r[sb]p\)")


def functions(listing: str) -> dict[str, list[tuple[int, str]]]:
    """Name -> addresses and instructions, of what objdump lists."""
    found: dict[str, list[tuple[int, str]]] = {}
    body: list[tuple[int, str]] = []
    for line in listing.splitlines():
        if start := FUNCTION.match(line):
            body = found.setdefault(start[1], [])
        elif one := INSTRUCTION.match(line):
            body.append((int(one[1], 16), one[2]))
    return found


def inner_loops(body: list[tuple[int, str]]) -> list[list[str]]:
    """Loops (what a jump back spans) that hold no other loop."""
    first = body[0][0]
    spans = [
        (target, address)
        for address, text in body
        if (jump := JUMP.match(text)) and first <= (target := int(jump[1], 16)) < address
    ]
    return [
        [text for address, text in body if start <= address <= stop]
        for start, stop in spans
        if not any((start, stop) != (a, b) and start <= a and b <= stop for a, b in spans)
    ]


def spills(body: list[tuple[int, str]]) -> list[str]:
    return [text for loop in inner_loops(body) for text in loop if SPILL.search(text)]


def test_no_inner_loop_of_a_tile_writes_a_vector_to_the_stack() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the loops of {platform.machine()} are not looked at")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    if native.library() is None or os.environ.get(native.VARIABLE):
        pytest.skip("the library that the installation compiles is not in use")
    library = Path(native.__file__).with_name("_native.so")
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    found = functions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if "avx2_f32_1" not in found:
        pytest.skip("the library is stripped of its names")
    for name in TILES:
        assert inner_loops(found[name]), name
        assert not spills(found[name]), name


def test_a_spill_is_found_in_the_inner_loop_only() -> None:
    listing = """
0000000000000010 <one_1>:
  10:\tvmovaps %ymm1,-0x20(%rsp)
  14:\tvmovaps -0x20(%rsp),%ymm2
  18:\tvmovaps %ymm3,0x40(%rsp)
  1c:\tjne    14 <one_1+0x4>
  20:\tvmovaps %ymm4,0x60(%rsp)
  24:\tjne    10 <one_1>
"""
    assert spills(functions(listing)["one_1"]) == ["vmovaps %ymm3,0x40(%rsp)"]
