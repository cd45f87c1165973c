"""`paligemma search`: the pages of an index that match a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.library import library_options, page_json, shown_path, start_of_text
from paligemma.cli.options import DEFAULT_MODEL, NamedPath, overwrite_option
from paligemma.cli.sections import ModelName
from paligemma.cli.show import counted, echo_json
from paligemma.errors import ConfigError

if TYPE_CHECKING:
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
@click.option(
    "--answer", is_flag=True, help="Let a model read the best pages and answer the query from each."
)
@click.option(
    "--answer-pages",
    "num_read",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    metavar="N",
    help="How many of the best pages it reads.",
)
@click.option(
    "--answer-model",
    type=ModelName(),
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="MODEL",
    help="The model that reads.",
)
@click.option(
    "--password",
    envvar="PALIGEMMA_PDF_PASSWORD",
    metavar="TEXT",
    help="Of locked PDFs that are read; better in PALIGEMMA_PDF_PASSWORD.",
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
    num_read: int,
    answer_model: str,
    password: str | None,
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
        read = hits[:num_read] if answer else []
        texts = _answers(query, read, answer_model, password) if read else []
        if html is not None:
            _write_page(html, query, words, hits, texts, index)
    if as_json:
        body: dict[str, Any] = {
            "query": query,
            "hits": [{"score": hit.score, **page_json(hit)} for hit in hits],
        }
        if answer:
            body["answers"] = [
                {"text": text, "page": page_json(hit)}
                for text, hit in zip(texts, read, strict=True)
            ]
        echo_json(body)
        return
    for text, hit in zip(texts, read, strict=True):
        click.echo(f"{text or '(the answer is empty)'}  ({_place(hit)})")
    if texts:
        click.echo()
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
    return f"{shown_path(hit.path)}, page {hit.page}"


def _answers(query: str, hits: Sequence[Hit], model: str, password: str | None) -> list[str]:
    """What a model reads on each page."""
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.retrieval.page_picture import page_picture

    pg = PaliGemma.from_pretrained(model)
    texts = []
    for hit in hits:
        picture, why = page_picture(hit, pg.processor.image_size_px, password=password)
        if why:
            click.echo(f"paligemma: {_place(hit)} is read as it was kept, smaller: {why}", err=True)
        texts.append(str(pg.answer(picture, query)))
    return texts


def _write_page(
    path: Path,
    query: str,
    words: Vectors,
    hits: Sequence[Hit],
    texts: Sequence[str],
    index: PageIndex,
) -> None:
    from paligemma.retrieval.results_page import PageAnswer, results_page
    from paligemma.whole_file import write_whole

    vectors = {hit.id: index.vectors(hit.id) for hit in hits}
    answers = [PageAnswer(text=text, hit=number) for number, text in enumerate(texts)]
    about = f"{index.name}, {counted(index.count(), 'page')}"
    page = results_page(query, hits, words=words, vectors=vectors, answers=answers, about=about)
    write_whole(path, [page])
    click.echo(f"paligemma: wrote {click.format_filename(path)}", err=True)
