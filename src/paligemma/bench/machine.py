"""What this machine is, and what it could do at best in this minute."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from paligemma.kernels import native

# Read as a whole, it is far larger than every cache.
_READ_BYTES = 1 << 28
_TURNS = 4_000_000
# Kinds of weights -> what a product is limited by: float32, 16-bit or 8-bit integer products.
_UNITS = {"int8": 16, "int4": 8}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What all threads reach at best; None where the compiled kernels are not there.

    Attributes:
        bytes_per_s: of reading memory once, in huge pages where the system has them.
        operations_per_s: of products from registers, by the kind of the weights.
    """

    bytes_per_s: float | None
    operations_per_s: float | None


class LimitsOfMachine:
    """Measures `Limits` again and again: bandwidth and clock drift within minutes."""

    def __init__(self, kind: str) -> None:
        self._unit = _UNITS.get(kind, 0)
        self._memory: torch.Tensor | None = None
        library = native.library()
        if library is not None:
            self._memory = torch.empty(_READ_BYTES, dtype=torch.uint8)
            library.pg_advise_huge(self._memory.data_ptr(), _READ_BYTES)
            self._memory.fill_(1)

    def read(self) -> Limits:
        """What the machine does now; about 50 milliseconds."""
        if self._memory is None:
            return Limits(bytes_per_s=None, operations_per_s=None)
        kernels = native.on_all_threads()
        return Limits(
            bytes_per_s=kernels.pg_read_speed(self._memory.data_ptr(), _READ_BYTES),
            operations_per_s=kernels.pg_peak_speed(self._unit, _TURNS) or None,
        )


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system, threads, kernels and versions."""
    return {
        "cpu": _cpu_name(),
        "num_cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "kernels": native.describe(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("paligemma", "torch")},
        },
    }


def _cpu_name() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Most memory of this process that was resident so far, mapped files included."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
