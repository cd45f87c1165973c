"""What reaches the terminal: text whose control characters are shown, never obeyed.

Answers of a model, labels, file names and lines of a server may hold sequences that set a title,
clear the screen or reverse the reading order. The streams of the whole program are guarded, so no
command can forget it, and also where they are a file or a pipe: what is kept there is looked at
later. JSON keeps its meaning, because a control character becomes the escape that JSON has for it.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# C0 but for tab and newline, DEL, C1, and what reorders text: line and paragraph separators,
# bidirectional embeddings, overrides and isolates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# How a progress bar goes back to the start of its line, and to the lines of other bars.
_BAR_MOVES = re.compile("(?:\n|\x1b\\[A)*\r?")


def visible(text: str) -> str:
    r"""The text with control characters as escapes such as `\u001b`."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class GuardedStream:
    """A text stream that writes `visible` text; all else is the stream's own.

    Args:
        stream: where the text goes.
        shows_bars: let a piece begin with the moves of a progress bar.
    """

    def __init__(self, stream: TextIO, *, shows_bars: bool = False) -> None:
        self._stream, self._shows_bars = stream, shows_bars

    def write(self, text: str) -> int:
        """Write the text; returns the number of its characters."""
        start = 0
        if self._shows_bars and (moves := _BAR_MOVES.match(text)):
            start = moves.end()
        self._stream.write(text[:start] + visible(text[start:]))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # Bytes would go past the guard.
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Standard output and standard error guarded, and able to spell every character."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    out, err = (
        stream and cast(TextIO, GuardedStream(stream, shows_bars=stream is before[1]))
        for stream in before
    )
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        # click replaces the output whose reader has gone.
        if sys.stdout is out:
            sys.stdout = before[0]
        if sys.stderr is err:
            sys.stderr = before[1]
