"""What all fuzzers share: seeded inputs, tried one by one in a worker of bounded time and memory.

A try ends well with a result or with an error of ours. Anything else is a crash, and what does not
end in time is a hang; both are kept as they came, to be tried again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from paligemma.errors import PaliGemmaError

START_S = 60.0  # for a worker to import what it needs


@dataclass(kw_only=True)
class Report:
    """What came of a run.

    Attributes:
        name, seed: of the fuzzer and its inputs.
        num_tried: inputs that were tried.
        num_refused: those that were refused with an error of ours.
        crashes, hangs: descriptions of inputs, and what was raised.
        peak_mb: most memory of a worker above what it started with.
        slowest_s: longest try.
    """

    name: str
    seed: int
    num_tried: int = 0
    num_refused: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    slowest_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not self.crashes and not self.hangs

    def __str__(self) -> str:
        lines = [
            f"{self.name}, seed {self.seed}: {self.num_tried} inputs tried, {self.num_refused} "
            f"refused, crashes {len(self.crashes)}, hangs {len(self.hangs)}, slowest "
            f"{self.slowest_s:.2f} s, memory {self.peak_mb:.0f} MB"
        ]
        return "\n".join([*lines, *(f"  crash: {one}" for one in self.crashes[:20])]) + "".join(
            f"\n  hang: {one}" for one in self.hangs[:20]
        )


def fuzz(
    name: str,
    make: Callable[[random.Random], tuple[str, Any]],
    attempt: Callable[[Any], object],
    *,
    seed: int,
    seconds: float,
    try_s: float,
    max_mb: int,
) -> Report:
    """Try inputs until the time is over.

    Args:
        name: of the fuzzer, for the report.
        make: description and input from a generator of its own; the same for the same seed.
        attempt: module-level function that is given the input, in the worker.
        seed: of the inputs.
        seconds: duration of the whole, after the first worker has started.
        try_s: bound of one try, after which its worker is ended.
        max_mb: address space of a worker, above what it starts with.
    """
    report = Report(name=name, seed=seed)
    worker = _Worker(attempt, max_mb)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number = report.num_tried
            what, given = make(random.Random(f"{seed}/{number}"))
            what = f"input {number}, {what}"
            start = time.monotonic()
            answer = worker.ask(given, try_s)
            report.num_tried += 1
            report.slowest_s = max(report.slowest_s, time.monotonic() - start)
            if answer is None:
                (report.hangs if worker.process.is_alive() else report.crashes).append(what)
                worker.end()
                worker = _Worker(attempt, max_mb)
                continue
            raised, is_ours, peak_mb = answer
            report.peak_mb = max(report.peak_mb, peak_mb)
            report.num_refused += is_ours
            if raised and not is_ours:
                report.crashes.append(f"{what}: {raised}")
    finally:
        worker.end()
    return report


class _Worker:
    """A process that tries inputs until it is ended."""

    def __init__(self, attempt: Callable[[Any], object], max_mb: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, attempt, max_mb), daemon=True)
        self.process.start()
        theirs.close()
        self._pipe.poll(START_S)
        self._pipe.recv()

    def ask(self, given: Any, try_s: float) -> tuple[str, bool, float] | None:
        """What was raised, whether the error is ours, and the peak; None without an answer."""
        try:
            self._pipe.send(given)
            return self._pipe.recv() if self._pipe.poll(try_s) else None
        except (EOFError, OSError):
            self.process.join(5)
            return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _serve(pipe: Connection, attempt: Callable[[Any], object], max_mb: int) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C complain there
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    bound = used + (max_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send("ready")
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        raised, is_ours = "", False
        try:
            attempt(given)
        except PaliGemmaError as error:
            is_ours = "\n" not in str(error) and len(str(error)) < 2000
            raised = f"{type(error).__name__}: {str(error)[:300]}"
        except BaseException as error:
            raised = f"{type(error).__name__}: {str(error)[:300]}"
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kb
        pipe.send((raised, is_ours, peak_kb / 1024))
