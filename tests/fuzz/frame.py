"""What all fuzzers share: seeded inputs, tried one by one in a worker of bounded time and memory.

A try ends well with a result, with an error of ours, or with an exit code of the program. Anything
else is a crash, and what does not end in time is a hang; both are kept as files, to be tried again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import random
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import click

from paligemma.errors import PaliGemmaError

START_S = 60.0  # for a worker to import what it needs
TRY_S = 10.0
KEPT = Path("build") / "fuzz"
MAX_MESSAGE = 2000


class Fuzzer(Protocol):
    """A module of this folder.

    Attributes:
        NAME: how it is called.
        MAX_MB: address space of a worker, above what it starts with.
        make: description and input from a generator of its own; the same for the same seed.
        attempt: tries an input, in the worker; `prepare()`, where there is one, comes before.
    """

    NAME: str
    MAX_MB: int

    def make(self, rng: random.Random, /) -> tuple[str, Any]: ...
    def attempt(self, given: Any, /) -> object: ...


@dataclass(kw_only=True)
class Report:
    """What came of a run.

    Attributes:
        name, seed: of the fuzzer and its inputs.
        num_tried: inputs that were tried.
        num_refused: those that were refused with an error of ours.
        crashes, hangs: descriptions of inputs, what was raised, and where they are kept.
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
        accepted = self.num_tried - self.num_refused - len(self.crashes) - len(self.hangs)
        line = (
            f"{self.name:15}  {self.num_tried:7} tried  {accepted:7} accepted  "
            f"{self.num_refused:7} refused  crashes {len(self.crashes)}  hangs {len(self.hangs)}  "
            f"slowest {self.slowest_s:5.2f} s  memory {self.peak_mb:4.0f} MB"
        )
        wrong = [f"crash: {one}" for one in self.crashes] + [f"hang: {one}" for one in self.hangs]
        return "\n  ".join([line, *wrong[:20]])


def fuzz(
    fuzzer: Fuzzer, *, seed: int, seconds: float, try_s: float = TRY_S, kept: Path = KEPT
) -> Report:
    """Try inputs until the time is over.

    Args:
        fuzzer: makes inputs and tries them.
        seed: of the inputs.
        seconds: duration of the whole, after the first worker has started.
        try_s: bound of one try, after which its worker is ended.
        kept: folder for inputs that crash or hang.
    """
    report = Report(name=fuzzer.NAME, seed=seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        worker = _Worker(fuzzer, place)
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                number = report.num_tried
                what, given = fuzzer.make(random.Random(f"{seed}/{number}"))
                start = time.monotonic()
                answer = worker.ask(given, try_s)
                report.num_tried += 1
                report.slowest_s = max(report.slowest_s, time.monotonic() - start)
                raised, is_ours, peak_mb = answer or ("the process ended", False, 0.0)
                report.peak_mb = max(report.peak_mb, peak_mb)
                report.num_refused += is_ours
                if raised and not is_ours:
                    hangs = answer is None and worker.process.is_alive()
                    path = _keep(kept / f"{fuzzer.NAME}-{seed}-{number}.pickle", given)
                    line = f"{what}: {'no end' if hangs else raised} [{path}]"
                    (report.hangs if hangs else report.crashes).append(line)
                if answer is None:
                    worker.end()
                    worker = _Worker(fuzzer, place)
        finally:
            worker.end()
    return report


def _keep(path: Path, given: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(given))
    return path


class _Worker:
    """A process that tries inputs until it is ended."""

    def __init__(self, fuzzer: Fuzzer, place: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        prepare = getattr(fuzzer, "prepare", None)
        given = (theirs, fuzzer.attempt, prepare, fuzzer.MAX_MB, place)
        self.process = context.Process(target=_serve, args=given, daemon=True)
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


def _serve(
    pipe: Connection,
    attempt: Callable[[Any], object],
    prepare: Callable[[], object] | None,
    max_mb: int,
    place: str,
) -> None:
    tempfile.tempdir = place
    os.chdir(place)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C complain there
    if prepare is not None:
        prepare()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    bound = used + (max_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The peak counts from here: that of getrusage would begin with the parent's.
    Path("/proc/self/clear_refs").write_text("5")
    start_kb = _peak_kb()
    pipe.send("ready")
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        raised, is_ours = end_of(attempt, given)
        pipe.send((raised, is_ours, (_peak_kb() - start_kb) / 1024))


def _peak_kb() -> int:
    """Most memory of this process since its peak was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def end_of(attempt: Callable[[Any], object], given: Any) -> tuple[str, bool]:
    """What a try raised, and whether that is an error of ours or an exit code for one."""
    try:
        attempt(given)
    except SystemExit as error:
        return (f"SystemExit: {error.code}" if error.code else ""), error.code in (1, 2)
    except BaseException as error:
        is_ours = isinstance(error, PaliGemmaError | click.ClickException)
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        said = f"{type(error).__name__}: {str(error)[:300]!r} ({place})"
        return said, is_ours and len(str(error)) < MAX_MESSAGE
    return "", False
