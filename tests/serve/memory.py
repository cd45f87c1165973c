"""How much memory a process takes at the most, as Linux counts it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Peak:
    """The most resident memory from now on, beside what there is now; skips where none is counted.

    Args:
        pid: of another process; this one by default.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._folder = Path(f"/proc/{pid or os.getpid()}")
        try:
            (self._folder / "clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            pytest.skip("needs /proc/PID/clear_refs of Linux")
        self._before_kib = self._kib("VmRSS")

    @property
    def grown_mb(self) -> float:
        """In MiB, until now."""
        return max(0, self._kib("VmHWM") - self._before_kib) / 1024

    def _kib(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
