"""Pages that are being added to an index: counted, and written several at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from paligemma.retrieval.items import Item, payload_of
from paligemma.retrieval.page_files import Page, PageFault
from paligemma.retrieval.vectors import Vectors

# How often pages are written, and how many wait at most.
KEEP_EVERY_S = 4.0
KEPT_AT_ONCE = 64


@dataclass(kw_only=True)
class Added:
    """What `PageIndex.add` did.

    Attributes:
        added: pages that are new in the index.
        kept: pages that were there already.
        faults: what could not be read.
    """

    added: int = 0
    kept: int = 0
    faults: list[PageFault] = field(default_factory=list)


class Keeping:
    """Encoded pages on their way to the store; several at once, since a write waits for the disk.

    Args:
        upsert: keeps pages and returns their number.
        result: counts them.
        on_page: called with each once it is kept.
    """

    def __init__(
        self,
        upsert: Callable[[Iterable[Item]], int],
        result: Added,
        on_page: Callable[[Page | PageFault], None] | None,
    ) -> None:
        self._upsert, self._result, self._on_page = upsert, result, on_page
        self._waiting: list[tuple[Page, Item]] = []
        self._since = time.monotonic()

    def take(self, pages: Iterable[Page], encoded: Iterable[Vectors]) -> None:
        """Take pages with their vectors, and write if it is time."""
        for page, vectors in zip(pages, encoded, strict=True):
            item = Item(id=page.id, vectors=vectors, payload=payload_of(page))
            self._waiting.append((page, item))
        is_time = time.monotonic() - self._since > KEEP_EVERY_S
        if is_time or len(self._waiting) >= KEPT_AT_ONCE:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        written, self._waiting = self._waiting, []
        self._result.added += self._upsert(item for _, item in written)
        self._since = time.monotonic()
        for page, _ in written:
            if self._on_page is not None:
                self._on_page(page)
