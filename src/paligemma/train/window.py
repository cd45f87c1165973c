"""The figures of some steps, averaged into one line of metrics."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

# What an objective logs under this name is counted, not averaged.
TOKENS = "tokens"


def words(line: Mapping[str, Any], lr: float) -> str:
    """A line of metrics, for the bar."""
    said = f"loss {line['loss']:.3f}, lr {line['schedule'] * lr:.1e}"
    return said + (f", {line['tokens_per_s']:.0f} tokens/s" if "tokens_per_s" in line else "")


class Window:
    """Averages of the logged values over the steps since the last line."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0
        self.started = time.monotonic()
        self.waited = 0.0

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Window:
        """The window that `to_json` stored: a resumed line averages what a whole one does."""
        window = cls()
        window.sums, window.count = dict(stored.get("sums", {})), stored.get("count", 0)
        window.started -= stored.get("seconds", 0.0)
        window.waited = stored.get("waited", 0.0)
        return window

    def to_json(self) -> dict[str, Any]:
        """The steps since the last line, as JSON holds them."""
        seconds = time.monotonic() - self.started
        return {
            "sums": self.sums,
            "count": self.count,
            "seconds": seconds,
            "waited": self.waited,
        }

    def timed(self, made: Iterator[Any]) -> Iterator[Any]:
        """The same batches; what is waited for them counts."""
        while True:
            started = time.monotonic()
            batch = next(made, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one step."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def line(self, step: int, factors: dict[str, float], num_processes: int) -> dict[str, Any]:
        """The steps since the last line as a line of metrics; the window begins anew."""
        now = time.monotonic()
        seconds = now - self.started
        tokens = self.sums.pop(TOKENS, None)
        resident = _resident_mb()
        means = {name: round(total / self.count, 5) for name, total in self.sums.items()}
        line = {
            "step": step,
            "seconds": round(seconds, 2),
            "steps_per_s": round(self.count / seconds, 3),
            **({} if tokens is None else {"tokens_per_s": round(tokens / seconds, 1)}),
            "data_s": round(self.waited, 3),
            **means,
            "schedule": max(factors.values()),
            **({} if resident is None else {"rss_mb": resident}),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "processes": num_processes,
        }
        self.sums, self.count, self.started, self.waited = {}, 0, now, 0.0
        return line


def _resident_mb() -> int | None:
    """Memory of this process now; else the most it had; None where neither can be asked for."""
    with suppress(OSError, ValueError, IndexError):  # Linux alone has the file.
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
    with suppress(ImportError):  # Windows has no such module.
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most >> (20 if sys.platform == "darwin" else 10)
    return None
