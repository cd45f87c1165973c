"""The pages that a server searches: one index with its model, in a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from paligemma.serve.errors import ServeError
from paligemma.serve.job import stopping, too_slow
from paligemma.serve.options import ServerOptions

if TYPE_CHECKING:
    from paligemma.retrieval.colpali import ColPali
    from paligemma.retrieval.index import PageIndex

T = TypeVar("T")

MAX_PAGES = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Shelf:
    """What the thread owns.

    Attributes:
        name: of the index, for readers; never a path.
        index: the pages, with the model that reads them.
        uploads: folder for the files that clients add; None, and they may only search.
        max_pages: an index of so many takes no more from clients.
    """

    name: str
    index: PageIndex
    uploads: Path | None = None
    max_pages: int = MAX_PAGES

    @property
    def model(self) -> ColPali:
        return self.index.model


class Library:
    """Searches one after another, beside the thread that writes answers.

    Args:
        open_shelf: opens index and model, in the thread that uses them.
        options: of their bounds, those of waiting.

    Raises:
        PaliGemmaError: what `open_shelf` raises.
    """

    def __init__(self, open_shelf: Callable[[], Shelf], options: ServerOptions) -> None:
        self._options, self._num_waiting, self._is_closing = options, 0, False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="library")
        try:
            self.shelf = self._thread.submit(open_shelf).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def run(self, work: Callable[[Shelf], T], *, is_begun: bool = False) -> T:
        """The result of a piece of work in the library's thread.

        Args:
            is_begun: whether it continues what was admitted, so that it is not refused.

        Raises:
            ServeError: too many wait, or it is not done in time.
            PaliGemmaError: what the work raises.
        """
        if self._is_closing:
            raise stopping()
        if self._num_waiting >= self._options.max_waiting and not is_begun:
            raise ServeError(
                f"{self._num_waiting} searches wait already; try again later",
                status=429,
                code="overloaded",
                retry_after_s=1,
            )
        self._num_waiting += 1
        future = self._thread.submit(self._done, work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _in_loop(loop, self._left))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._options.answer_s)
        except TimeoutError:
            raise too_slow(self._options) from None

    def close(self) -> None:
        """Close the index once the running search has ended; those that wait are given up."""
        self._is_closing = True
        self._thread.submit(self.shelf.index.close)
        self._thread.shutdown()

    def _done(self, work: Callable[[Shelf], T]) -> T:
        if self._is_closing:
            raise stopping()
        return work(self.shelf)

    def _left(self) -> None:
        self._num_waiting -= 1


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop has ended, and nobody counts any more
        return
