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


def text_pieces(steps: Iterable[Step], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Pieces of text; a character of several tokens comes whole.

    Args:
        decode: text of ids, up to the end token.
    """
    ids: list[int] = []
    text = written = ""
    for step in steps:
        ids.append(int(step.tokens[0]))
        text = decode(ids)
        # An unfinished character is shown as replacement characters at the end.
        complete = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if len(complete) > len(written):
            yield complete[len(written) :]
            written = complete
    if len(text) > len(written):
        yield text[len(written) :]
