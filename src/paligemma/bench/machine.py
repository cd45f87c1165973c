"""What this machine is, and what it could do at best in this minute."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
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


def describe(*packages: str) -> dict[str, Any]:
    """Processor, cores, memory, system, threads, kernels and versions.

    Args:
        packages: whose versions matter too; those that are not installed are left out.
    """
    total = _total_memory_bytes()
    versions = {"python": platform.python_version()}
    for name in ("paligemma", "torch", *packages):
        with suppress(PackageNotFoundError):  # run from its sources, the package has no version
            versions[name] = version(name)
    return {
        "cpu": _cpu_name(),
        "num_cores": os.cpu_count(),
        "memory_gb": None if total is None else round(total / 1e9, 1),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "kernels": native.describe(),
        "versions": versions,
    }


def _cpu_name() -> str:
    return _from_proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def peak_memory_bytes() -> int | None:
    """Most memory of this process that was resident so far, mapped files included.

    None on Windows. `getrusage` counts what the parent had before this program began, so on Linux
    the kernel's own mark of this program is read.
    """
    peak = _from_proc("/proc/self/status", "VmHWM")
    if peak is not None:
        return 1024 * int(peak.split()[0])
    with suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return None


def free_memory_bytes() -> int | None:
    """Memory that a new process may take without swapping, files that can be dropped included;
    all of it where the system does not tell, None where that is not known either."""
    free = _from_proc("/proc/meminfo", "MemAvailable")
    known = [_total_memory_bytes() if free is None else 1024 * int(free.split()[0])]
    with suppress(OSError, ValueError):  # the bound of a container
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min((one for one in known if one is not None), default=None)


def _total_memory_bytes() -> int | None:
    with suppress(AttributeError, OSError, ValueError):  # Windows has no such function
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _from_proc(file: str, key: str) -> str | None:
    """What Linux says about `key`, or None on another system."""
    with suppress(OSError):
        for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return None
