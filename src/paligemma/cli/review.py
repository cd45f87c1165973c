"""`paligemma review`: labels accepted, corrected or rejected in a browser, to learn from."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from pathlib import Path

import click

from paligemma.cli.options import NamedPath
from paligemma.errors import ConfigError


@click.command()
@click.argument("labels", type=NamedPath(file_okay=False))
@click.option(
    "--output",
    type=NamedPath(file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder of decisions and rows; one that is there goes on.",
)
@click.option(
    "--choose",
    "order",
    type=click.Choice(["uncertain", "random", "rows"]),
    default="uncertain",
    show_default=True,
    help="Which rows: the least sure, drawn ones, or the first.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    help="Rows that are shown.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of --choose random.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the page; a free one by default.",
)
@click.option("--open/--no-open", "opens", default=True, help="Open a browser; yes by default.")
def review(
    labels: Path, output: Path, order: str, limit: int, seed: int, port: int, opens: bool
) -> None:
    """Look at LABELS of `paligemma batch` in a browser, by the keyboard.

    \b
    paligemma review labels --output reviewed --limit 200
    paligemma train --data reviewed/ --model google/paligemma2-3b-pt-448 --output runs/reviewed

    Accepted and corrected rows lie in DIR/train.jsonl with their pictures when the program is
    stopped by Ctrl-C.
    """
    from paligemma.jobs.labelling.folder import BATCH, LabelFolder
    from paligemma.one_writer import one_writer
    from paligemma.review.choice import chosen
    from paligemma.review.decisions import TRAIN, Reviewed
    from paligemma.review.server import ReviewServer

    if not (labels / BATCH).is_file():
        raise ConfigError(
            f"labels are the folder of --output of paligemma batch, and {labels} holds no {BATCH}; "
            "check the path"
        )
    records = chosen(LabelFolder(labels).records(), limit, order, seed)
    if not records:
        raise ConfigError(f"{labels} holds no labelled row; run paligemma batch first")
    with one_writer(output):
        reviewed = Reviewed(output, labels, records)
        try:
            server = ReviewServer(reviewed, port)
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be listened at ({error.strerror}); name another"
            ) from error
        with server:
            click.echo(f"{len(records)} rows at {server.url} ; Ctrl-C ends the review")
            if opens:
                webbrowser.open(server.url)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
        num = reviewed.write_rows()
        counts = reviewed.counts()
    click.echo(
        f"{num} rows in {output / TRAIN}: {counts['accepted']} accepted, {counts['rejected']} "
        f"rejected, {counts['open']} open"
    )
