"""How the program ends before its work is done, and what it says then."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import click

from paligemma.stop_signals import SIGNALS, handled_by

Command = TypeVar("Command", bound=Callable[..., Any])

_SIGNALS = [one for one in SIGNALS if one != signal.SIGINT]


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end; it unwinds as Ctrl-C does, and nothing is left half-done.

    Attributes:
        exit_code: 128 and the number of the signal, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped`; one that the caller ignores (nohup) stays ignored."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for taken in before:
            signal.signal(taken, signal.SIG_IGN)  # Another one would cut what is being tidied up.
        raise Stopped(number)

    before = [one for one in _SIGNALS if signal.getsignal(one) is signal.SIG_DFL]
    try:
        for number in before:
            signal.signal(number, stop)
    except ValueError:  # Not in the main thread, which alone may do so.
        before = []
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_end_it_at_once() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end a program there and then that leaves nothing half-done.

    What a handler raises inside asyncio is wrapped by a group of tasks, or lost in a callback, and
    a thread that waits for a pipe would be waited for.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    with handled_by(end):
        yield


def when_stopped(what: str) -> Callable[[Command], Command]:
    """A decorator of a command that says how to go on when it is stopped.

    Args:
        what: what the same command does then, such as "goes on where it stopped".
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def saying(*args: Any, **values: Any) -> Any:
            try:
                return command(*args, **values)
            except KeyboardInterrupt:
                words = click.get_current_context().find_root().obj or sys.argv[1:]
                again = shlex.join(["paligemma", *words])
                click.echo(f"paligemma: stopped; the same command {what}:\n  {again}", err=True)
                raise

        return saying  # type: ignore[return-value]

    return decorate
