"""The text of one answer as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from paligemma.generate import Step, require_numbers


def checked(steps: Iterable[Step], on_cut: Callable[[], None]) -> Iterator[Step]:
    """The steps of a single row, with the error and the report that a whole answer would give.

    Args:
        on_cut: called after the last step where the bound cut the answer.

    Raises:
        ConfigError: the model produced NaN.
    """
    step = None
    for step in steps:
        require_numbers(step.logprobs)
        yield step
    if step is not None and not bool(step.finished.all()):
        on_cut()


class TextPieces:
    """The text of an answer, piece by piece; a character of several tokens comes whole.

    Args:
        decode: text of ids, up to the end token.

    Attributes:
        text: of all tokens so far.
        num_told: characters of it that were returned.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self.text = ""
        self.num_told = 0

    def push(self, token: int) -> str:
        """What one more token adds that is complete."""
        self._ids.append(token)
        self.text = self._decode(self._ids)
        # An unfinished character is shown as replacement characters at the end.
        return self._beyond(len(self.text.rstrip("\N{REPLACEMENT CHARACTER}")))

    def rest(self) -> str:
        """What was held back."""
        return self._beyond(len(self.text))

    def _beyond(self, end: int) -> str:
        piece = self.text[self.num_told : end]
        self.num_told = max(end, self.num_told)
        return piece


def text_pieces(steps: Iterable[Step], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """The pieces of text of the steps of a single row; see `TextPieces`."""
    pieces = TextPieces(decode)
    for step in steps:
        piece = pieces.push(int(step.tokens[0]))
        if piece:
            yield piece
    if rest := pieces.rest():
        yield rest
