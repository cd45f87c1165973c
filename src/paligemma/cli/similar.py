"""`paligemma similar`: pictures like a picture, by the image tower alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from paligemma.cli.options import (
    ModelChoice,
    NamedPath,
    optional_model_options,
    say_idle,
    tell_default,
)
from paligemma.cli.pictures import expanded, require_pictures
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.show import echo_json
from paligemma.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from paligemma.errors import PaliGemmaError
    from paligemma.retrieval.similar import OnFault, Similar


@click.command(cls=SectionedCommand)
@click.argument("pictures", nargs=-1, required=True, metavar="[PICTURE] OTHER...")
@click.option("--text", metavar="WORDS", help="Find what WORDS describe, instead of a PICTURE.")
@click.option(
    "--siglip",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Compare what SigLIP sees: a folder as google/siglip-so400m-patch14-384 on the hub.",
)
@click.option(
    "-k",
    type=click.IntRange(1, 10_000),
    default=5,
    show_default=True,
    metavar="N",
    help="How many are shown, the most similar first.",
)
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@optional_model_options
@click.pass_context
def similar(
    ctx: click.Context,
    pictures: tuple[str, ...],
    text: str | None,
    siglip: Path | None,
    k: int,
    as_json: bool,
    model: ModelChoice,
) -> None:
    """Find those of the OTHER pictures, files or folders, that are most like PICTURE.

    Scores are cosines of what the image tower sees, to be compared with each other. PaliGemma has
    no text tower: --text takes SigLIP's files too. To find pages of documents by words, use
    `paligemma index` and `paligemma search`.

    \b
    paligemma similar desk.png photos/ -k 10
    paligemma similar --text "two dogs on a beach" photos/ --siglip siglip/
    """
    if text is not None and siglip is None:
        raise ConfigError(
            "PaliGemma has no text tower to compare words with; name SigLIP's files with --siglip"
        )
    picture, named = (None, pictures) if text is not None else (pictures[0], pictures[1:])
    others = tuple(
        one
        for one in expanded(ctx, ctx.command.params[0], named)
        if picture is None or not _is_same_file(one, picture)
    )
    require_pictures([] if picture is None else [picture], model)
    require_pictures(others, model, every=False)
    if not others:
        raise ImageError("there is no picture but the one to compare; name others")

    def report(number: int, error: PaliGemmaError) -> None:
        name = click.format_filename(others[number])
        click.echo(f"paligemma: {name} is left out: {error}", err=True)

    if siglip is None:
        from paligemma.retrieval.similar import similar_pictures

        assert picture is not None
        tell_default(model)
        found = similar_pictures(model.load(), picture, others, k=k, on_fault=report)
    else:
        say_idle(_stated(ctx, {"model_name", *model.options}), "--siglip compares SigLIP's towers")
        found = _by_siglip(siglip, text, picture, others, k, report)
    if not found:
        raise ImageError("none of the other pictures can be read; see the lines above")
    if as_json:
        hits = [{"path": others[one.number], "score": one.score} for one in found]
        by = model.label if siglip is None else str(siglip)
        echo_json({"picture": picture, "text": text, "model": by, "similar": hits})
        return
    for one in found:
        click.echo(f"{one.score:.4f}  {click.format_filename(others[one.number])}")


def _by_siglip(
    folder: Path,
    text: str | None,
    picture: str | None,
    others: Sequence[str],
    k: int,
    report: OnFault,
) -> list[Similar]:
    from paligemma.retrieval.siglip import Siglip
    from paligemma.retrieval.similar import nearest

    towers = Siglip.from_folder(folder)
    if text is not None:
        query = towers.text_vectors([text])[0]
    else:
        query = towers.picture_vectors([str(picture)])[0]
    return nearest(query, others, towers.pixels, towers.pixel_vectors, k=k, on_fault=report)


def _stated(ctx: click.Context, names: set[str]) -> list[str]:
    """Those of the parameters that the command line gives, as options."""
    return [
        one.opts[0]
        for one in ctx.command.params
        if one.name in names and ctx.get_parameter_source(one.name) is ParameterSource.COMMANDLINE
    ]


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
