"""`paligemma mcp`: the model as tools of an agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import ModelChoice, NamedPath, model_options
from paligemma.errors import ConfigError, MissingExtraError


class Address(click.ParamType):
    """HOST:PORT, [::1]:PORT, or a port of this machine alone."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Host and port."""
        found = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+)):)?(\d{1,5})", value)
        if found is None or not 0 < int(found[3]) < 65536:
            self.fail(f"{value!r:.100} is no address; write 8000, HOST:8000 or [::1]:8000")
        return found[1] or found[2] or "127.0.0.1", int(found[3])


@click.command()
@click.option(
    "--root",
    "folders",
    type=NamedPath(),
    multiple=True,
    metavar="DIR",
    help="Pictures below DIR may be named by their path; several times for several folders.",
)
@click.option(
    "--http",
    "address",
    type=Address(),
    metavar="[HOST:]PORT",
    help="Listen there, at /mcp, instead of standard input; HOST is 127.0.0.1 by default.",
)
@click.option(
    "--api-key-file",
    "key_file",
    type=NamedPath(),
    metavar="FILE",
    help="With --http: only who sends one of its keys is answered; one a line, as name:key.",
)
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="With --http: another name by which clients may call this machine.",
)
@model_options
def mcp(
    folders: tuple[Path, ...],
    address: tuple[str, int] | None,
    key_file: Path | None,
    hosts: tuple[str, ...],
    model: ModelChoice,
) -> None:
    """Serve a model to an agent: tools that detect, segment, caption, answer and read.

    The agent's program starts this one and speaks the Model Context Protocol on its standard input
    and output. Files are read below the roots alone, and without one none is.

    \b
    paligemma mcp --root ~/Pictures --model google/paligemma2-3b-mix-448 --quant int4
    paligemma mcp --root ~/Pictures --http 8001 --api-key-file keys
    """
    try:
        from paligemma.serve.mcp import LOCAL_HOSTS, create_http, run_stdio
    except ImportError as error:
        raise MissingExtraError(
            f"tools for agents need the extra mcp ({error.name} is missing); "
            "pip install 'paligemma[mcp]'"
        ) from None
    from paligemma.pipeline.loading import LoadOptions, load_processor
    from paligemma.serve.asking import Service
    from paligemma.serve.keys import Keys
    from paligemma.serve.models import Models, ModelSpec
    from paligemma.serve.options import ServerOptions
    from paligemma.serve.roots import Roots

    if model.options.get("allow_url"):
        raise ConfigError(
            "an agent's pictures are not fetched from addresses, got --allow-url; leave it out, "
            "and let the agent download them below a --root"
        )
    if address is None and (key_file is not None or hosts):
        raise click.UsageError("--api-key-file and --allowed-host are for --http; state it too")
    if address is not None and key_file is None and address[0] not in LOCAL_HOSTS:
        raise ConfigError(
            f"an address that others can reach needs keys, got {address[0]!r}; add --api-key-file, "
            "or listen at 127.0.0.1"
        )
    keys = None if key_file is None else Keys.from_file(key_file)
    roots = Roots(folders)
    # A wrong name is reported now; the weights are loaded at the first call.
    load_processor(model.name, LoadOptions(**model.options))
    options = ServerOptions(allowed_hosts=hosts)
    spec = ModelSpec(name=model.label, load=model.load, quant=model.options.get("quant"))
    service = Service.of(Models([spec], options.max_model_bytes), options)
    service.worker.start()
    try:
        if address is None:
            # The protocol needs the stream itself; JSON escapes what a terminal would obey.
            with contextlib.redirect_stdout(sys.__stdout__):
                asyncio.run(run_stdio(service, roots))
        else:
            host, port = address
            app = create_http(service, roots, host=host, port=port, keys=keys)
            _listen(app, host, port, options.drain_s)
    finally:
        service.close()


def _listen(app: Any, host: str, port: int, drain_s: float) -> None:
    """Serve until a signal; running calls then get some time to end."""
    import uvicorn

    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"a server needs an address of this machine that is free, {shown} is not "
            f"({os.strerror(error.errno or 0)}); choose another"
        ) from None
    config = uvicorn.Config(
        app,
        log_config=None,  # what is logged goes where the log of this program goes
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(drain_s),
    )
    with bound:
        click.echo(f"paligemma: http://{shown}/mcp; Ctrl-C ends it", err=True)
        uvicorn.Server(config).run(sockets=[bound])
