"""What answers examples, batch by batch; the next pictures are read while it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeAlias

from paligemma.example import Example, Prediction

# A batch with its number in the plan, and the answers to it.
NumberedBatch: TypeAlias = tuple[int, list[Example]]
NumberedAnswers: TypeAlias = tuple[int, list[Prediction]]


class Answerer(Protocol):
    """Something that answers examples: a model, or a stand-in."""

    def settings(self) -> Mapping[str, Any]:
        """Everything about it that changes an answer, as JSON holds it; part of the run's key."""
        ...

    def read(self, examples: Sequence[Example]) -> Any:
        """Whatever can be prepared without the model, such as pictures; may run in a thread."""
        ...

    def answer(self, examples: Sequence[Example], prepared: Any) -> list[Prediction]:
        """One prediction for each example, in order; an unreadable picture gives an `error`."""
        ...


def answered(
    answerer: Answerer, batches: Iterable[NumberedBatch], num_workers: int
) -> Iterator[NumberedAnswers]:
    """Answer batches in turn while threads read the pictures of the batches to come.

    Args:
        answerer: model or stand-in that answers.
        batches: numbered batches in the order in which they are answered.
        num_workers: number of threads; 0 reads and answers in turn.
    """
    if not num_workers:
        for number, examples in batches:
            yield number, answerer.answer(examples, answerer.read(examples))
        return
    todo = iter(batches)
    with ThreadPoolExecutor(num_workers, thread_name_prefix="pictures") as pool:

        def begin(num: int) -> list[tuple[int, list[Example], Future[Any]]]:
            some = islice(todo, num)
            return [(number, one, pool.submit(answerer.read, one)) for number, one in some]

        ahead = begin(num_workers + 1)
        try:
            while ahead:
                number, examples, read = ahead.pop(0)
                yield number, answerer.answer(examples, read.result())
                ahead += begin(1)
        finally:
            pool.shutdown(cancel_futures=True)
