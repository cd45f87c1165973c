"""`paligemma search`: the pages of an index that match a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.library import library_options, page_json, start_of_text
from paligemma.cli.options import DEFAULT_MODEL, NamedPath, overwrite_option
from paligemma.cli.sections import ModelName
from paligemma.cli.show import counted, echo_json
from paligemma.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from PIL import Image

    from paligemma.retrieval.index import PageIndex
    from paligemma.retrieval.items import Hit
    from paligemma.retrieval.vectors import Vectors


@click.command("search")
@click.argument("query")
@library_options
@click.option(
    "-k",
    "k",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="Number of pages.",
)
@click.option(
    "--rerank",
    metavar="N",
    default="auto",
    show_default=True,
    help="Score only so many pages, whose centres are nearest; all for every page. auto: all "
    "of up to 5,000, 500 of more.",
)
@click.option(
    "--html", type=NamedPath(), metavar="FILE", help="Write a page with what each word matched."
)
@click.option("--answer", is_flag=True, help="Let a model read the best page and answer the query.")
@click.option(
    "--answer-model",
    type=ModelName(),
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="MODEL",
    help="The model that reads.",
)
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@overwrite_option
def search(
    query: str,
    library: Callable[..., PageIndex],
    k: int,
    rerank: str,
    html: Path | None,
    answer: bool,
    answer_model: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Find the pages that match a QUERY best.

    \b
    paligemma search "how much did revenue grow?" --index library -k 5 --html results.html
    """
    if html is not None:
        from paligemma.whole_file import require_free

        require_free(html, overwrite=overwrite)
    chosen = _rerank(rerank, k)
    if not query.strip():
        raise ConfigError("a query has at least one word, got an empty text")
    with library() as index:
        (words,) = index.model.encode_queries([query])
        hits = index.search(words, k, rerank=chosen)
        text = _answer(query, hits[0], answer_model) if answer and hits else None
        if html is not None:
            _write_page(html, query, words, hits, text, index)
    if as_json:
        body: dict[str, Any] = {
            "query": query,
            "hits": [{"score": hit.score, **page_json(hit)} for hit in hits],
        }
        if answer:
            body["answer"] = None if text is None else {"text": text, "page": page_json(hits[0])}
        echo_json(body)
        return
    if text is not None:
        click.echo(f"{text or '(the answer is empty)'}  ({_place(hits[0])})\n")
    for hit in hits:
        click.echo(f"{hit.score:7.3f}  {_place(hit)}{start_of_text(hit)}")
    if not hits:
        click.echo("paligemma: the index has no pages", err=True)


def _rerank(value: str, k: int) -> str | int | None:
    if value in ("auto", "all"):
        return None if value == "all" else value
    if not (value.isascii() and value.isdecimal() and len(value) < 8 and int(value) >= k):
        raise click.BadParameter(
            f"auto, all, or a whole number from -k on, got {value!r:.100}", param_hint="--rerank"
        )
    return int(value)


def _place(hit: Hit) -> str:
    return f"{click.format_filename(hit.path)}, page {hit.page}"


def _answer(query: str, hit: Hit, model: str) -> str:
    """What a model reads on the page."""
    from paligemma.pipeline.paligemma import PaliGemma

    pg = PaliGemma.from_pretrained(model)
    return str(pg.answer(_picture(hit, pg.processor.image_size_px), query))


def _picture(hit: Hit, size_px: int) -> Image.Image:
    """The page from its file, or, where that has changed or is gone, as it is kept.

    Raises:
        ImageError: neither is there.
    """
    from paligemma.retrieval.items import thumbnail_of
    from paligemma.retrieval.page_files import PageBounds, read_page

    try:
        page = read_page(hit.path, hit.page, PageBounds(size_px=size_px))
        if page.id == hit.id:
            return page.picture
        why = "it has changed"
    except ImageError as error:
        why = str(error)
    small = thumbnail_of(hit)
    if small is None:
        raise ImageError(f"{_place(hit)} cannot be read again: {why}")
    click.echo(f"paligemma: {_place(hit)} is read as it was kept, smaller: {why}", err=True)
    return small


def _write_page(
    path: Path,
    query: str,
    words: Vectors,
    hits: Sequence[Hit],
    answer: str | None,
    index: PageIndex,
) -> None:
    from paligemma.retrieval.results_page import PageAnswer, results_page
    from paligemma.whole_file import write_whole

    vectors = {hit.id: index.vectors(hit.id) for hit in hits}
    answers: list[Any] = [] if answer is None else [PageAnswer(text=answer, hit=0)]
    about = f"{index.name}, {counted(index.count(), 'page')}"
    page = results_page(query, hits, words=words, vectors=vectors, answers=answers, about=about)
    write_whole(path, [page])
    click.echo(f"paligemma: wrote {click.format_filename(path)}", err=True)
