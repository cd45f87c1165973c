"""Which index of pages a server searches; as options of its commands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import NamedPath, gathered_options
from paligemma.errors import ConfigError

if TYPE_CHECKING:
    from paligemma.serve.library import Library
    from paligemma.serve.options import ServerOptions


@dataclass(frozen=True, kw_only=True)
class LibraryChoice:
    """An index, as it was asked for."""

    index: str | None
    model: str | None
    uploads: Path | None = None
    limit: int | None = None

    def open(self, options: ServerOptions) -> Library | None:
        """The index with its model; None where none was named.

        Raises:
            PaliGemmaError: it cannot be opened.
        """
        if self.limit is not None and self.uploads is None:
            raise ConfigError("a limit is one of what clients add; let them with --index-uploads")
        if self.index is None:
            if self.model or self.uploads:
                raise ConfigError("a retriever and uploads need an index; name it with --index")
            return None
        from paligemma.retrieval.index import PageIndex
        from paligemma.serve.library import MAX_PAGES, Library, Shelf

        place, limit = self.index, self.limit or MAX_PAGES

        def open_shelf() -> Shelf:
            index = PageIndex.open(place, self.model, create=self.uploads is not None)
            try:
                # The weights are there before anyone asks.
                processor = index.model.pg.processor
                lowest = min(options.max_pixels, processor.reader.max_pixels)
                processor.reader = replace(processor.reader, max_pixels=lowest, allow_video=False)
            except BaseException:
                index.close()
                raise
            return Shelf(name=_name_of(place), index=index, uploads=self.uploads, max_pages=limit)

        click.echo(f"paligemma: opening the index {place} …", err=True)
        library = Library(open_shelf, options)
        number = library.shelf.index.count()
        click.echo(f"paligemma: {place} has {number:,} page{'s' * (number != 1)}", err=True)
        return library


def _name_of(url: str) -> str:
    """The last part of an index's name: readers need not learn where it lies."""
    return PurePath(url.split("?")[0]).name or "index"


def _choose(values: dict[str, Any]) -> LibraryChoice:
    return LibraryChoice(
        index=values.pop("index_url"),
        model=values.pop("retriever"),
        uploads=values.pop("uploads", None),
        limit=values.pop("limit", None),
    )


_INDEX = [
    click.option(
        "--index",
        "index_url",
        metavar="INDEX",
        help="Pages to be searched, made by `paligemma index add`; none by default.",
    ),
    click.option(
        "--retriever",
        metavar="MODEL",
        help="The index's model, where it has no name; the one that made it by default.",
    ),
]
library_options = gathered_options("library", _INDEX, _choose)
writable_library_options = gathered_options(
    "library",
    [
        *_INDEX,
        click.option(
            "--index-uploads",
            "uploads",
            type=NamedPath(file_okay=False),
            metavar="DIR",
            help="Let clients add pages to the index and remove some; their files are kept in DIR.",
        ),
        click.option(
            "--index-limit",
            "limit",
            type=click.IntRange(1, 1_000_000_000),
            metavar="N",
            help="Pages of the index from which on clients add no more; 1,000,000 by default.",
        ),
    ],
    _choose,
)
