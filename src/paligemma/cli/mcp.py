"""`paligemma mcp`: the model as tools of an agent."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import click

from paligemma.cli.options import ModelChoice, NamedPath, model_options
from paligemma.errors import ConfigError, MissingExtraError


@click.command()
@click.option(
    "--root",
    "folders",
    type=NamedPath(),
    multiple=True,
    metavar="DIR",
    help="Pictures below DIR may be named by their path; several times for several folders.",
)
@model_options
def mcp(folders: tuple[Path, ...], model: ModelChoice) -> None:
    """Serve a model to an agent: tools that detect, segment, caption, answer and read.

    The agent's program starts this one and speaks the Model Context Protocol on its standard input
    and output. Files are read below the roots alone, and without one none is.

    \b
    paligemma mcp --root ~/Pictures --model google/paligemma2-3b-mix-448 --quant int4
    """
    try:
        from paligemma.serve.mcp import run_stdio
    except ImportError as error:
        raise MissingExtraError(
            f"tools for agents need the extra mcp ({error.name} is missing); "
            "pip install 'paligemma[mcp]'"
        ) from None
    from paligemma.pipeline.loading import LoadOptions, load_processor
    from paligemma.serve.asking import Service
    from paligemma.serve.models import Models, ModelSpec
    from paligemma.serve.options import ServerOptions
    from paligemma.serve.roots import Roots

    if model.options.get("allow_url"):
        raise ConfigError(
            "an agent's pictures are not fetched from addresses, got --allow-url; leave it out, "
            "and let the agent download them below a --root"
        )
    roots = Roots(folders)
    # A wrong name is reported now; the weights are loaded at the first call.
    load_processor(model.name, LoadOptions(**model.options))
    options = ServerOptions()
    spec = ModelSpec(name=model.label, load=model.load, quant=model.options.get("quant"))
    service = Service.of(Models([spec], options.max_model_bytes), options)
    service.worker.start()
    try:
        # The protocol needs the stream itself; JSON escapes what a terminal would obey.
        with contextlib.redirect_stdout(sys.__stdout__):
            asyncio.run(run_stdio(service, roots))
    finally:
        service.close()
