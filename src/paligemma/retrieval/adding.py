"""Pages that are being added to an index: counted, and written several at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from paligemma.retrieval.items import Item, payload_of, with_path
from paligemma.retrieval.page_files import Page, PageFault
from paligemma.retrieval.store import Store
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
        moved: of these, pages whose file lies elsewhere now; the index has the new path.
        outdated: pages of earlier contents of the files.
        removed: whether those were removed.
        faults: what could not be read.
    """

    added: int = 0
    kept: int = 0
    moved: int = 0
    outdated: int = 0
    removed: bool = False
    faults: list[PageFault] = field(default_factory=list)


def moved_and_outdated(
    kept: Mapping[str, str], files: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Pages whose file was moved, and pages of what a file held before it was changed.

    Args:
        kept: id of a page -> path of its file when it was added.
        files: path of a file that has just been read -> its sha256.

    Returns:
        id of a page -> the path where its file lies now; ids of pages of earlier contents.
    """
    now_at: dict[str, str] = {}
    for path, digest in files.items():
        now_at.setdefault(digest, path)
    moved, outdated = {}, []
    for page_id, path in kept.items():
        digest = page_id.partition(":")[0]
        is_changed = files.get(path, digest) != digest
        if digest in now_at and (is_changed or not os.path.exists(path)):
            moved[page_id] = now_at[digest]
        elif is_changed:
            outdated.append(page_id)
    return moved, outdated


def settle_files(
    store: Store,
    kept: Mapping[str, str],
    files: Mapping[str, str],
    result: Added,
    *,
    replace_changed: bool,
) -> None:
    """Write the new paths of moved files, and count or remove pages of earlier contents.

    Args:
        kept, files: as in `moved_and_outdated`.
        result: gets the numbers.
        replace_changed: whether pages of earlier contents are removed.
    """
    moved, outdated = moved_and_outdated(kept, files)
    for page_id, path in moved.items():
        for entry in store.get([page_id]):
            store.put([replace(entry, payload=with_path(entry.payload, path))])
    if replace_changed:
        store.drop(outdated)
    result.moved, result.outdated = len(moved), len(outdated)
    result.removed = replace_changed and bool(outdated)


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
