"""An index of pages: added once with a model, searched by text with the same one.

Where the vectors lie is the business of a store, which the index's name chooses:
"memory://" (gone with the process), "memory://FOLDER" (safetensors), "FOLDER" (Qdrant Edge),
"qdrant://HOST:PORT/COLLECTION" (a server or cluster).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from paligemma.errors import ConfigError
from paligemma.retrieval.adding import Added, Keeping, settle_files
from paligemma.retrieval.encoder import DEFAULT_MODEL, Encoder, lasting_name, load_colpali
from paligemma.retrieval.index_url import open_store
from paligemma.retrieval.items import PAGE_ID, Hit, Item, entry_of, hit_of, path_of
from paligemma.retrieval.page_files import Page, PageBounds, PageFault, pages_of
from paligemma.retrieval.store import Card, Store, grid_of
from paligemma.retrieval.vectors import Vectors

# Pages up to which all are scored; beyond, only those whose centres are nearest.
EXACT_UP_TO = 5_000
RERANKED = 500
MAX_K = 1_000


class PageIndex:
    """Pages and their vectors; a context manager that closes its store.

    Args:
        store: where they lie.
        model: a ColPali; or the name of one, loaded when it is needed. Of an index with pages, None
            stands for the model that made it; of a new one, for the embedded model.
        preset: of a model that is named: what stands around its pages and queries.
        name: what messages call the index.
        load: makes a model of a name; `ColPali.from_pretrained` by default.

    Raises:
        ConfigError: the index was made with another model.
    """

    def __init__(
        self,
        store: Store,
        model: Encoder | str | None = None,
        *,
        preset: str | None = None,
        name: str = "the index",
        load: Callable[..., Encoder] | None = None,
    ) -> None:
        self._store, self.name, self._load = store, name, load or load_colpali
        card = store.card
        self._model_name = model if isinstance(model, str) else ""
        if model is None:
            self._model_name = card.model if card else DEFAULT_MODEL
            preset = preset or (card.preset if card else None)
        self._preset = preset or ""
        self._model: Encoder | None = None
        if model is not None and not isinstance(model, str):
            self._model = self._checked(model)

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        model: Encoder | str | None = None,
        *,
        preset: str | None = None,
        create: bool = True,
        load: Callable[..., Encoder] | None = None,
    ) -> PageIndex:
        """Open an index, or begin one.

        Args:
            url: its name, see the module.
            model: see the class.
            preset: see the class.
            load: see the class.
            create: whether one that is not there may be begun.

        Raises:
            ConfigError: a name that is none, no index of that name, or one made with another model.
            DataError: files of the index are damaged.
            MissingExtraError: what keeps it is not installed.
        """
        name = os.fspath(url)
        store = open_store(name, create=create)
        try:
            if store.card is None and not create:
                raise ConfigError(
                    f"no index is at {name!r:.300}; make one with: paligemma index add FILES "
                    f"--index {name:.300}"
                )
            return cls(store, model, preset=preset, name=name, load=load)
        except BaseException:
            store.close()
            raise

    @property
    def model(self) -> Any:
        """The model, loaded when it is first asked for.

        Raises:
            ConfigError: it is not the one that made the index, or its name is not known.
        """
        if self._model is None:
            if not self._model_name:
                raise ConfigError(
                    f"{self.name} was made with a model that has no name here; open it with "
                    "model=, or give the name with --model"
                )
            options = {"preset": self._preset} if self._preset else {}
            self._model = self._checked(self._load(self._model_name, **options))
        return self._model

    @property
    def card(self) -> Card | None:
        """What the index was made with; None while it is empty and new."""
        return self._store.card

    def add(
        self,
        paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        *,
        batch_size: int = 1,
        bounds: PageBounds | None = None,
        replace_changed: bool = False,
        on_page: Callable[[Page | PageFault], None] | None = None,
    ) -> Added:
        """Add the pages of PDFs, pictures, folders and patterns; those already there stay.

        A page is known by its content, so one whose file was moved gets the new path. Pages are
        kept every few seconds, so an interrupted call is resumed by the same call.

        Args:
            batch_size: pages encoded at once.
            bounds: what pages may cost; `size_px` is that of the model.
            replace_changed: whether pages of earlier contents of these files are removed.
            on_page: called with each page once it is kept, and with each fault.

        Raises:
            ConfigError: a batch size below 1, or another process writes to the index.
        """
        result = Added()
        for _ in self.add_in_steps(
            paths,
            result,
            batch_size=batch_size,
            bounds=bounds,
            replace_changed=replace_changed,
            on_page=on_page,
        ):
            pass
        return result

    def add_in_steps(
        self,
        paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        result: Added,
        *,
        batch_size: int = 1,
        bounds: PageBounds | None = None,
        replace_changed: bool = False,
        on_page: Callable[[Page | PageFault], None] | None = None,
    ) -> Generator[None]:
        """`add`, which pauses after each batch and each fault, so that others may search.

        Closing it early keeps what was computed.

        Args:
            result: grows with the steps.
        """
        if type(batch_size) is not int or not 1 <= batch_size <= 1024:
            raise ConfigError(f"batch_size lies in 1..1024, got {batch_size!r:.100}")
        size_px = self.model.image_size_px
        bounds = replace(bounds or PageBounds(), size_px=size_px)
        before = {page_id: path_of(one) for page_id, one in self._store.payloads()}
        known, files = set(before), dict[str, str]()
        kept = Keeping(self.upsert, result, on_page)

        def is_known(page_id: str) -> bool:
            if page_id in known:
                result.kept += 1
            return page_id in known

        def note_file(path: str, digest: str) -> None:
            files[os.path.abspath(path)] = digest

        def encode() -> None:
            pictures = [page.picture for page in waiting]
            encoded = self.model.encode_pages(pictures, batch_size=batch_size)
            kept.take(waiting, encoded)
            waiting.clear()

        waiting: list[Page] = []
        listed = [paths] if isinstance(paths, str | os.PathLike) else paths
        try:
            for found in pages_of(listed, bounds, is_known=is_known, on_file=note_file):
                if isinstance(found, PageFault):
                    result.faults.append(found)
                    if on_page is not None:
                        on_page(found)
                    yield
                    continue
                known.add(found.id)
                waiting.append(found)
                if len(waiting) == batch_size:
                    encode()
                    yield
            if waiting:
                encode()
        finally:  # also of an interrupted call: what was computed is kept
            kept.write()
        # A file of which no page could be read replaces nothing.
        read = {page_id.partition(":")[0] for page_id in known}
        files = {path: digest for path, digest in files.items() if digest in read}
        settle_files(self._store, before, files, result, replace_changed=replace_changed)

    def upsert(self, items: Iterable[Item]) -> int:
        """Keep pages with their vectors; one with the same id is replaced. Returns their number.

        Raises:
            ConfigError: an id that is none, or vectors of another width than the index has.
        """
        listed = list(items)
        if not listed:
            return 0
        card = self._store.card
        if card is None:
            model = self.model
            card = Card(
                identity=model.identity,
                model=lasting_name(self._model_name),
                preset=self._preset if self._model_name else "",
                dim=model.dim,
            )
        entries = [entry_of(item, card.dim) for item in listed]
        if self._store.card is None:
            self._store.bind(card)
            self._checked(self.model)
        self._store.put(entries)
        return len(entries)

    def remove(self, ids: Iterable[str]) -> int:
        """Forget pages, by their ids or by the path of a file or of a folder above it.

        Returns:
            Their number.
        """
        wanted = set(ids)
        places = {os.path.abspath(one) for one in wanted if not PAGE_ID.fullmatch(one)}
        below = tuple(os.path.join(place, "") for place in places)

        def is_gone(page_id: str, path: str) -> bool:
            return page_id in wanted or path in places or path.startswith(below)

        gone = [
            page_id
            for page_id, payload in self._store.payloads()
            if is_gone(page_id, path_of(payload))
        ]
        self._store.drop(gone)
        return len(gone)

    def search(
        self, query: str | Vectors, k: int = 5, *, rerank: int | str | None = "auto"
    ) -> list[Hit]:
        """The k pages that match a query best.

        Args:
            query: a text, or its vectors.
            k: number of pages.
            rerank: score only so many pages, whose centres are nearest; None scores all; "auto"
                scores all of up to 5,000, and 500 of more.

        Raises:
            ConfigError: an empty text, vectors of another width, or numbers out of range.
        """
        if type(k) is not int or not 1 <= k <= MAX_K:
            raise ConfigError(f"k lies in 1..{MAX_K}, got {k!r:.100}")
        if rerank == "auto":
            rerank = None if self.count() <= EXACT_UP_TO else max(RERANKED, 5 * k)
        if rerank is not None and (type(rerank) is not int or not k <= rerank <= 1_000_000):
            raise ConfigError(f"rerank is 'auto', None, or in k..1000000, got {rerank!r:.100}")
        card = self._store.card
        if card is None:
            return []
        if isinstance(query, str):
            if not query.strip():
                raise ConfigError("a query has at least one word, got an empty text")
            values = self.model.encode_queries([query])[0].values
        else:
            values = query.values
        if values.ndim != 2 or not len(values) or values.shape[1] != card.dim:
            raise ConfigError(
                f"a query of {self.name} is of width {card.dim}, got {list(values.shape)}; encode "
                "it with the model that made the index"
            )
        found = self._store.nearest(values.detach().cpu().half().numpy(), k, rerank)
        return [hit_of(one.id, one.score, one.payload) for one in found]

    def vectors(self, page_id: str) -> Vectors:
        """The vectors of a page.

        Raises:
            ConfigError: the page is not there.
        """
        entries = self._store.get([page_id])
        if not entries:
            raise ConfigError(f"{self.name} has no page {page_id!r:.200}")
        values = torch.from_numpy(entries[0].values.astype(np.float32))
        return Vectors(values=values, grid=grid_of(entries[0]))

    def pages(self) -> Iterator[Hit]:
        """Every page, without thumbnail and with score 0; in no particular order."""
        for page_id, payload in self._store.payloads():
            yield hit_of(page_id, 0.0, payload)

    def count(self) -> int:
        """Number of pages."""
        return self._store.count()

    def verify(self) -> list[str]:
        """What is wrong with the index, a sentence each; empty if nothing is."""
        listed = [page_id for page_id, _ in self._store.payloads()]
        found = [f"{one!r:.100} is no id of a page" for one in listed if not PAGE_ID.fullmatch(one)]
        if len(listed) != self.count() or len(set(listed)) != len(listed):
            found.append(f"{len(set(listed))} pages are listed, {self.count()} are counted")
        return found + self._store.faults()

    def snapshot(self, target: str | os.PathLike[str]) -> None:
        """Write a copy of the index to a new folder, which can be opened as one.

        Raises:
            ConfigError: something is there already, or the index is empty and new.
        """
        self._store.snapshot(os.fspath(target))

    def close(self) -> None:
        """Let go of files and locks."""
        self._store.close()

    def __enter__(self) -> PageIndex:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _checked(self, model: Encoder) -> Encoder:
        card = self._store.card
        if card is not None and model.identity != card.identity:
            if self._model_name and lasting_name(self._model_name) == card.model:
                raise ConfigError(
                    f"{self.name} was made with {card.model} of other weights, preset or "
                    f"resolution ({card.identity:.100}, now {model.identity:.100}); open it as it "
                    "was, or make a new index"
                )
            raise ConfigError(
                f"{self.name} was made with {card.model or 'a model'} ({card.identity:.100}), and "
                f"vectors of another model ({model.identity:.100}) mean nothing there; open it "
                "with that one, or make a new index"
            )
        return model
