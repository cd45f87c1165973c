"""`paligemma similar`: pictures like a picture, by the image tower alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from paligemma.cli.options import ModelChoice, model_options
from paligemma.cli.pictures import expanded, require_pictures
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.show import echo_json
from paligemma.errors import ImageError

if TYPE_CHECKING:
    from paligemma.errors import PaliGemmaError


@click.command(cls=SectionedCommand)
@click.argument("picture")
@click.argument("others", nargs=-1, required=True, metavar="OTHER...", callback=expanded)
@click.option(
    "-k",
    type=click.IntRange(1, 10_000),
    default=5,
    show_default=True,
    help="How many are shown, the most similar first.",
)
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@model_options
def similar(
    picture: str, others: tuple[str, ...], k: int, as_json: bool, model: ModelChoice
) -> None:
    """Find those of the OTHER pictures, files or folders, that are most like PICTURE.

    Scores are cosines of what the image tower sees, to be compared with each other. PaliGemma has
    no text tower: to find pictures by words, use `paligemma index` and `paligemma search`.

    \b
    paligemma similar desk.png photos/ -k 10
    """
    from paligemma.retrieval.similar import similar_pictures

    others = tuple(one for one in others if not _is_same_file(one, picture))
    require_pictures([picture], model)
    require_pictures(others, model, every=False)
    if not others:
        raise ImageError("there is no picture but the one to compare; name others")

    def report(number: int, error: PaliGemmaError) -> None:
        name = click.format_filename(others[number])
        click.echo(f"paligemma: {name} is left out: {error}", err=True)

    found = similar_pictures(model.load(), picture, others, k=k, on_fault=report)
    if not found:
        raise ImageError("none of the other pictures can be read; see the lines above")
    if as_json:
        hits = [{"path": others[one.number], "score": one.score} for one in found]
        echo_json({"picture": picture, "model": model.label, "similar": hits})
        return
    for one in found:
        click.echo(f"{one.score:.4f}  {click.format_filename(others[one.number])}")


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
