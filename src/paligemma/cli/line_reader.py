"""Lines that a person types at a terminal, with editing and history, or that come from a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import click

from paligemma.errors import PromptError
from paligemma.whole_file import cache_folder

MAX_LINE_CHARS = 20_000  # of a pipe; prompts are bounded by half of it
MAX_HISTORY_LINES = 1000


class LineReader:
    """Reads standard input line by line; as a context it keeps the history of a terminal.

    Args:
        keeps_history: whether lines typed are read from and written to a file of the user's alone.

    Attributes:
        is_interactive: whether a person is asked for the lines.
    """

    def __init__(self, *, keeps_history: bool) -> None:
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._keeps_history = keeps_history
        if hasattr(sys.stdin, "reconfigure"):  # Bytes that are no text are refused as a prompt.
            sys.stdin.reconfigure(errors="surrogateescape")

    def read(self) -> str | None:
        """The next line, or None after the last.

        Raises:
            PromptError: it is too long; the one after it is read next.
        """
        if self.is_interactive:
            try:
                return input("> ")
            except EOFError:
                click.echo()
                return None
        line = sys.stdin.readline(MAX_LINE_CHARS)
        if len(line) < MAX_LINE_CHARS or line.endswith("\n"):
            return line or None
        while (rest := sys.stdin.readline(MAX_LINE_CHARS)) and not rest.endswith("\n"):
            pass
        raise PromptError(
            f"a line may have {MAX_LINE_CHARS} characters, one that starts with {line[:40]!r} has "
            "more; shorten it"
        )

    def __enter__(self) -> LineReader:
        readline = _readline() if self.is_interactive else None
        if readline is not None:
            readline.set_history_length(MAX_HISTORY_LINES)
            if self._keeps_history:
                try:
                    readline.read_history_file(_history_file())
                except (OSError, UnicodeError):  # none yet, or no longer readable
                    readline.clear_history()
        return self

    def __exit__(self, *raised: object) -> None:
        readline = _readline() if self.is_interactive and self._keeps_history else None
        if readline is None:
            return
        path = _history_file()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The file is private before it holds anything.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            os.chmod(path, 0o600)
            readline.write_history_file(path)
        except OSError as error:
            click.echo(
                f"paligemma: the history could not be kept in {path} ({error.strerror}); "
                "--no-history keeps none",
                err=True,
            )


def _history_file() -> Path:
    return cache_folder() / "chat_history"


def _readline() -> ModuleType | None:
    """Python's line editor, where it was built with one."""
    try:
        import readline
    except ImportError:
        return None
    return readline
