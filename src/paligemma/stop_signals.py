"""The signals that ask a program to end, handled for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP.


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """All of them go to a handler, afterwards to whoever had them before.

    What the caller ignores, as nohup does, stays ignored. Outside the main thread, which alone may
    handle signals, nothing changes.
    """
    taken = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    try:
        before = {one: signal.signal(one, handler) for one in taken}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def handler_kept(number: int) -> Iterator[None]:
    """Who handles a signal now does so afterwards, whatever a library has set in between.

    Outside the main thread, which alone may handle signals, nothing changes.
    """
    before = signal.getsignal(number)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(number, before)
