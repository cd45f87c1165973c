"""Ends a run whose step hangs, with what it hangs on."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from paligemma.train.distributed import World

_MAX_NAMED = 8


class Watchdog:
    """Watches the steps of this process, and asks which others have come to their end.

    Args:
        bound_s: longest time a step may take, with the wait for its batch.
        here: the processes of the run.
        rows_of: names the rows of this process in a step.
    """

    def __init__(
        self, bound_s: float, here: World, rows_of: Callable[[int], Sequence[str]]
    ) -> None:
        self._bound_s, self._here, self._rows_of = bound_s, here, rows_of
        self._now: tuple[int, float] | None = None
        self._closed = threading.Event()
        self._store: Any = dist.distributed_c10d._get_default_store() if here.size > 1 else None
        self._arrivals = 0
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self, step: int) -> None:
        """A step begins, counted from 0."""
        self._now = step, time.monotonic()

    def arrive(self) -> None:
        """This process has its gradients, and goes to meet the others."""
        self._arrivals += 1
        if self._store is not None:
            self._store.add(f"arrivals of {self._here.rank}", 1)

    def rest(self) -> None:
        """What follows may take as long as it does."""
        self._now = None

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._bound_s / 4, 5.0)):
            now = self._now
            if now is not None and time.monotonic() - now[1] > self._bound_s:
                sys.stderr.write(self._words(now[0]) + "\n")
                sys.stderr.flush()
                os._exit(1)

    def _words(self, step: int) -> str:
        rows = list(self._rows_of(step))
        named = ", ".join(rows[:_MAX_NAMED]) + (", ..." if len(rows) > _MAX_NAMED else "")
        missing = ", ".join(map(str, self._missing())) or "none"
        return (
            f"paligemma: a step takes at most {self._bound_s:g} s, process {self._here.rank} of "
            f"{self._here.size} is longer in step {step + 1} (rows {named or 'not named'}; "
            f"processes that have not come to its end: {missing}); look at these rows and "
            "processes, or raise --hang-after; the same command goes on from the last checkpoint"
        )

    def _missing(self) -> list[int]:
        if self._store is None:
            return [0]
        try:
            counts = [
                int(self._store.add(f"arrivals of {rank}", 0)) for rank in range(self._here.size)
            ]
        except RuntimeError:  # The process that counts is gone.
            return [0]
        most = max(*counts, self._arrivals)
        # Where all have arrived, it is the sum itself that hangs.
        return [rank for rank, count in enumerate(counts) if count < most]
