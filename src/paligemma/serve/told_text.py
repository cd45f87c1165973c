"""The text of one answer as it may be told: up to the first stop, without what may begin one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ToldText:
    """Takes text as it is written, with a record of each token, and gives both as they may be told.

    Args:
        stops: texts of which none is told, nor anything behind it.

    Attributes:
        is_stopped: whether one was found.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = stops
        self._text, self._num_told = "", 0
        self._held: list[tuple[int, Any]] = []  # where a token begins, and its record
        self.is_stopped = False

    def push(self, piece: str, record: Any = None) -> tuple[str, list[Any]]:
        """What one more token adds that can be told."""
        if self.is_stopped:
            return "", []
        if record is not None:
            self._held.append((len(self._text), record))
        self._text += piece
        return self._told(len(self._text) - self._num_of_beginning())

    def finish(self, piece: str, records: Sequence[Any] = ()) -> tuple[str, list[Any]]:
        """The rest, once the whole answer is known."""
        if self.is_stopped:
            return "", []
        self._held += [(len(self._text), record) for record in records]
        self._text += piece
        return self._told(len(self._text))

    def _told(self, end: int) -> tuple[str, list[Any]]:
        places = [self._text.find(stop, self._num_told) for stop in self._stops]
        found = [place for place in places if place >= 0]
        self.is_stopped = bool(found)
        if found:
            end = min(found)
        told, self._num_told = self._text[self._num_told : end], end
        # A record without text, as that of the end token, belongs to what stands before it.
        is_all = not found and end == len(self._text)
        records = [record for start, record in self._held if is_all or start < end]
        self._held = self._held[len(records) :]
        return told, records

    def _num_of_beginning(self) -> int:
        """Characters at the end that may be the beginning of a stop."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(self._text) - self._num_told), 0, -1):
            if any(stop.startswith(self._text[-size:]) for stop in self._stops):
                return size
        return 0
