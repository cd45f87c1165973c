"""The rows of one answer, which are written side by side and told one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from paligemma.outputs.boxes import SEPARATOR
from paligemma.pipeline.engine import Written
from paligemma.pipeline.engine_queue import Progress
from paligemma.pipeline.streaming import TextPieces
from paligemma.serve.job import Wrote


class ToldRows:
    """Holds back what later rows write until the rows before them are complete.

    Args:
        decode: text of ids, up to the end token.

    Attributes:
        written: the rows that are complete, in order.
        num_objects: that were told of the row that is being told.
        num_chars: of the text that `piece` gave.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pieces = TextPieces(decode)
        self._held: dict[int, deque[Wrote]] = {}
        self._before = ""  # what joins the next piece to those of the row before
        self.written: list[Written] = []
        self.num_objects = 0
        self.num_chars = 0

    def in_order(self, wrote: Wrote) -> Iterator[Wrote]:
        """What can be told now that this was written."""
        self._held.setdefault(wrote.row, deque()).append(wrote)
        while held := self._held.get(len(self.written)):
            one = held.popleft()
            yield one
            if one.progress.written is not None:
                self.written.append(one.progress.written)
                self._pieces, self._before = TextPieces(self._decode), SEPARATOR
                self.num_objects = 0

    def piece(self, progress: Progress) -> str:
        """What a token of the row that is being told adds to the text of the answer."""
        piece = self._before + self._pieces.push(progress.token)
        self._before = ""
        if progress.written is not None:
            piece += self._pieces.rest()
        self.num_chars += len(piece)
        return piece
