"""`paligemma index`: documents that can be searched as pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import NamedPath, gathered_options
from paligemma.cli.sections import ModelName, NamingGroup
from paligemma.cli.show import counted, echo_json
from paligemma.cli.start import without_garbage_collection
from paligemma.cli.stopping import when_stopped
from paligemma.errors import ConfigError

if TYPE_CHECKING:
    from paligemma.retrieval.index import PageIndex
    from paligemma.retrieval.items import Hit
    from paligemma.retrieval.page_files import Page, PageFault

DEFAULT_INDEX = "library"
EXIT_BAD_INPUT = 2
_SHOWN_TEXT = 60


def _choose_library(values: dict[str, Any]) -> Callable[..., PageIndex]:
    name, model, preset = values.pop("index"), values.pop("model_name"), values.pop("preset")
    stated = {key: value for key, value in values.items() if value is not None}

    def load(source: str, **options: Any) -> Any:
        with without_garbage_collection():
            from paligemma.retrieval.colpali import ColPali

            return ColPali.from_pretrained(source, **options, **stated)

    def opened(*, create: bool = False) -> PageIndex:
        from paligemma.retrieval.index import PageIndex

        return PageIndex.open(name, model, preset=preset, create=create, load=load)

    return opened


_INDEX = click.option(
    "--index",
    default=DEFAULT_INDEX,
    show_default=True,
    metavar="NAME",
    help="A folder; memory://FOLDER for plain safetensors; qdrant://HOST:PORT/COLLECTION.",
)
_MODEL = [
    click.option(
        "--model",
        "model_name",
        type=ModelName(),
        metavar="MODEL",
        help="A ColPali: a hub id or a folder. By default the one that made the index; for a new "
        "index the small embedded one, tiny.",
    ),
    click.option(
        "--preset", metavar="NAME", help="Its prompts, such as v1.3, if its files have none."
    ),
    click.option("--mode", type=click.Choice(["exact", "mixed", "bf16"]), help="Precision."),
    click.option("--quant", metavar="NAME", help="Weights in fewer bits, such as int8."),
    click.option("--device", metavar="NAME", help="By default cuda if there is one, else cpu."),
]
library_options = gathered_options("library", [_INDEX, *_MODEL], _choose_library)


@click.group("index", cls=NamingGroup)
def index_group() -> None:
    """Keep documents so that they can be searched as pictures.

    \b
    paligemma index add reports/*.pdf scans/ --index library
    paligemma search "how much did revenue grow?" --index library
    """


@index_group.command("add")
@click.argument("paths", nargs=-1, required=True, metavar="FILE...")
@library_options
@click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    metavar="N",
    help="Pages encoded at once.",
)
@click.option(
    "--password",
    envvar="PALIGEMMA_PDF_PASSWORD",
    metavar="TEXT",
    help="Of locked PDFs; better in PALIGEMMA_PDF_PASSWORD, where other users do not see it.",
)
@click.option(
    "--max-pages",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Of a file; by default 2,000.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 64_000_000),
    metavar="N",
    help="Of a page; a larger one is drawn smaller. By default 16 million.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 86_400),
    metavar="S",
    help="For a page; by default 60.",
)
@click.option(
    "--replace",
    "replace_changed",
    is_flag=True,
    help="Remove pages of what these files held before they were changed.",
)
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@when_stopped("goes on with the page it stopped at")
def add(
    paths: tuple[str, ...],
    library: Callable[..., PageIndex],
    batch_size: int,
    replace_changed: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Add pages of PDFs, pictures, folders and patterns.

    Pages that are there already stay as they are, so the same command resumes an interrupted one.
    What cannot be read is named and left out, and the exit code is then 2.

    \b
    paligemma index add reports/*.pdf scans/ --index library
    """
    from paligemma.retrieval.index_url import MEMORY
    from paligemma.retrieval.page_files import Page, PageBounds

    bounds = PageBounds(**{name: value for name, value in limits.items() if value is not None})
    with library(create=True) as index, _Progress() as progress:
        if index.name == MEMORY:
            raise ConfigError(
                f"{MEMORY} ends with this command, and so would its pages; name a folder, or "
                f"{MEMORY}FOLDER"
            )

        def note(one: Page | PageFault) -> None:
            if not isinstance(one, Page):
                progress.clear()
                click.echo(f"paligemma: {one}", err=True)
            else:
                progress.update()

        done = index.add(
            paths,
            batch_size=batch_size,
            bounds=bounds,
            replace_changed=replace_changed,
            on_page=note,
        )
        total = index.count()
    if as_json:
        faults = [
            {"path": one.path, "page": one.number, "error": one.reason} for one in done.faults
        ]
        counts = {"added": done.added, "kept": done.kept, "moved": done.moved}
        outdated = {"outdated": done.outdated, "removed": done.removed}
        echo_json({**counts, **outdated, "pages": total, "faults": faults})
    else:
        parts = (
            (done.kept, "there already"),
            (done.moved, "under a new path"),
            (len(done.faults), "not read"),
            (done.outdated if done.removed else 0, "of earlier contents removed"),
        )
        rest = "".join(f", {number} {what}" for number, what in parts if number)
        click.echo(f"{counted(done.added, 'page')} added{rest}; {index.name} has {total:,}")
    if done.outdated and not done.removed:
        click.echo(
            f"paligemma: {counted(done.outdated, 'page')} show{'s' * (done.outdated == 1)} what "
            "these files held before they were changed; --replace removes them",
            err=True,
        )
    if done.faults:
        raise click.exceptions.Exit(EXIT_BAD_INPUT)


class _Progress:
    """A count of pages on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm.auto import tqdm

            self._bar = tqdm(unit="page", smoothing=0.05)

    def update(self) -> None:
        """Count a page."""
        if self._bar is not None:
            self._bar.update()

    def clear(self) -> None:
        """Make room for a line."""
        if self._bar is not None:
            self._bar.clear()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.close()


@index_group.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="FILE|FOLDER|ID...")
@_INDEX
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def remove(names: tuple[str, ...], index: str, as_json: bool) -> None:
    """Remove all pages of a file or a folder, by its path, or one page, by its id.

    They are no longer found or listed. Their bytes may stay in the index's files, but not in those
    of a copy from `paligemma index snapshot`.

    \b
    paligemma index remove reports/2019.pdf --index library
    """
    with _opened(index) as opened:
        removed, total = opened.remove(names), opened.count()
    if as_json:
        echo_json({"removed": removed, "pages": total})
    else:
        click.echo(f"{counted(removed, 'page')} removed; {index} has {total:,}")
    if not removed:
        click.echo(
            "paligemma: no page has such a path or id; see them with: paligemma index list "
            f"--index {index}",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_BAD_INPUT)


@index_group.command("list")
@_INDEX
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def list_pages(index: str, as_json: bool) -> None:
    """List the pages: file, number, start of the text.

    \b
    paligemma index list --index library
    """
    with _opened(index) as opened:
        pages = sorted(opened.pages(), key=lambda page: (page.path, page.page, page.id))
    if as_json:
        echo_json({"pages": [page_json(page) for page in pages]})
        return
    for page in pages:
        click.echo(f"{shown_path(page.path)}, page {page.page}{start_of_text(page)}")


@index_group.command("stats")
@_INDEX
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def stats(index: str, as_json: bool) -> None:
    """Say how many pages there are, of how many files, and which model made them.

    \b
    paligemma index stats --index library
    """
    with _opened(index) as opened:
        card = opened.card
        files, total = {page.path for page in opened.pages()}, opened.count()
        body = {
            "index": index,
            "pages": total,
            "files": len(files),
            "model": card.model if card else None,
            "identity": card.identity if card else None,
            "dim": card.dim if card else None,
        }
    if as_json:
        echo_json(body)
        return
    click.echo(f"{counted(total, 'page')} of {counted(len(files), 'file')}")
    click.echo(f"made with {body['model'] or 'a model'} ({body['identity']}), width {body['dim']}")


@index_group.command("verify")
@_INDEX
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def verify(index: str, as_json: bool) -> None:
    """Read everything that is kept, and say what is wrong with it.

    \b
    paligemma index verify --index library
    """
    with _opened(index) as opened:
        faults, total = opened.verify(), opened.count()
    if as_json:
        echo_json({"pages": total, "faults": faults})
    else:
        for fault in faults:
            click.echo(fault)
        shown = counted(len(faults), "fault") if faults else "no faults"
        click.echo(f"{counted(total, 'page')}, {shown}")
    if faults:
        raise click.exceptions.Exit(1)


@index_group.command("snapshot")
@click.argument("folder", type=NamedPath())
@_INDEX
def snapshot(folder: Any, index: str) -> None:
    """Write a copy of an index to a new FOLDER, which is an index too.

    \b
    paligemma index snapshot library-2024 --index library
    """
    with _opened(index) as opened:
        opened.snapshot(folder)
    click.echo(f"paligemma: wrote {click.format_filename(folder)}", err=True)


def page_json(page: Hit) -> dict[str, Any]:
    """A page as commands write it."""
    return {
        "id": page.id,
        "path": page.path,
        "page": page.page,
        "size": list(page.size),
        "text": page.payload.get("text", ""),
    }


def shown_path(path: str) -> str:
    """A path on one line: what cannot be printed is escaped."""
    shown = click.format_filename(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def start_of_text(page: Hit) -> str:
    """The first words of a page's text layer, after a colon; nothing if it has none."""
    text = page.payload.get("text")
    words = "".join(filter(str.isprintable, " ".join(text.split()))) if text else ""
    shown = words[:_SHOWN_TEXT] + ("..." if len(words) > _SHOWN_TEXT else "")
    return f": {shown}" if shown else ""


def _opened(name: str) -> PageIndex:
    from paligemma.retrieval.index import PageIndex

    return PageIndex.open(name, create=False)
