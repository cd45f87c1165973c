"""`paligemma adapter`: merge an adapter into its model, or show what it changes."""

from __future__ import annotations

from pathlib import Path

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.sections import ModelName, NamingGroup


@click.group("adapter", cls=NamingGroup)
def adapter_group() -> None:
    """Adapters in PEFT's layout, as `paligemma train` writes them.

    \b
    paligemma adapter inspect runs/cards
    paligemma adapter merge runs/cards --output merged/

    ADAPTER is a run of `train`, its folder `adapter`, what PEFT wrote, or an adapter of the hub,
    owner/name or owner/name@revision.
    """


@adapter_group.command("inspect")
@click.argument("adapter")
@click.option(
    "--model",
    type=ModelName(),
    metavar="MODEL",
    help="Its base; what its config names by default.",
)
def inspect_command(adapter: str, model: str | None) -> None:
    """Show what an adapter changes."""
    from paligemma.tuning.merging import describe

    for line in describe(adapter, model):
        click.echo(line)


@adapter_group.command("merge")
@click.argument("adapter")
@click.option(
    "--model",
    type=ModelName(),
    metavar="MODEL",
    help="Its base; what its config names by default.",
)
@click.option(
    "--output",
    type=NamedPath(file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder of the merged model; must not exist.",
)
@click.option("--dtype", metavar="NAME", help="Of the written weights; the base's by default.")
def merge_command(adapter: str, model: str | None, output: Path, dtype: str | None) -> None:
    """Write the model with the adapter in its weights.

    The merged model is compared with the adapted one in float32 and refused where they differ.
    """
    from paligemma.tuning.merging import merge_adapter

    difference = merge_adapter(adapter, model, output, dtype=dtype)
    click.echo(f"wrote {output}; logits differ from the adapted model's by {difference:.1e}")
