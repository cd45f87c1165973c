"""`paligemma mcp`: the model as tools of an agent."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import ModelChoice, NamedPath, served_model_options
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.serve_library import LibraryChoice, library_options
from paligemma.cli.serve_options import Safety, is_loopback, safety_options
from paligemma.cli.stopping import signals_end_it_at_once
from paligemma.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from paligemma.serve.options import ServerOptions


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


@click.command(cls=SectionedCommand)
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
@served_model_options
@library_options
@safety_options
def mcp(
    folders: tuple[Path, ...],
    address: tuple[str, int] | None,
    model: ModelChoice,
    library: LibraryChoice,
    safety: Safety,
) -> None:
    """Serve a model to an agent: tools that detect, segment, caption, answer and read, and with
    --index one that searches documents.

    The agent's program starts this one and speaks the Model Context Protocol on its standard input
    and output. Files are read below the roots alone, and without one none is.

    \b
    paligemma mcp --root ~/Pictures --model google/paligemma2-3b-mix-448 --quant int4
    paligemma mcp --root ~/Pictures --http 8001 --api-key-file keys
    paligemma mcp --index library
    """
    try:
        from paligemma.serve.mcp import create_http, run_stdio
    except ImportError as error:
        raise MissingExtraError(
            f"tools for agents need the extra mcp ({error.name} is missing); "
            "pip install 'paligemma[mcp]'"
        ) from None
    from paligemma.pipeline.loading import LoadOptions, load_processor
    from paligemma.serve.asking import Service
    from paligemma.serve.models import Models, ModelSpec
    from paligemma.serve.roots import Roots

    host = "127.0.0.1" if address is None else address[0]
    if address is None and (safety.api_key_file or safety.allowed_hosts or safety.trusted_proxies):
        raise click.UsageError("keys, hosts and proxies are for --http; state it too")
    if safety.api_key_file is None and not is_loopback(host):
        raise ConfigError(
            f"an address that others can reach needs keys, got {host!r}; add --api-key-file, "
            "or listen at 127.0.0.1"
        )
    options, keys = safety.options(host), safety.keys(host)
    roots = Roots(folders)
    # A wrong name is reported now; the weights are loaded at the first call.
    load_processor(model.name, LoadOptions(**model.options))
    spec = ModelSpec(name=model.label, load=model.load, quant=model.options.get("quant"))
    service = Service.of(Models([spec], options), options, library=library.open(options))
    service.worker.start()
    try:
        with signals_end_it_at_once():
            if address is None:
                if sys.stdin.isatty():
                    click.echo(
                        "paligemma: waiting for the messages of an agent's program, which starts "
                        "this one by itself; see docs/agents.md",
                        err=True,
                    )
                # The protocol needs the stream itself; JSON escapes what a terminal would obey.
                with contextlib.redirect_stdout(sys.__stdout__):
                    asyncio.run(run_stdio(service, roots))
            else:
                app = create_http(service, roots, host=host, port=address[1], keys=keys)
                _listen(app, host, address[1], options, safety.trusted_proxies)
    finally:
        service.close()


def _listen(app: Any, host: str, port: int, options: ServerOptions, proxies: Sequence[str]) -> None:
    """Serve until SIGTERM or Ctrl-C; running calls then get some time to end."""
    import uvicorn

    from paligemma.serve.server import Connection, listen

    sockets = listen(host, port)
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, bounds=options),  # type: ignore[arg-type]
        ws="none",
        log_config=None,  # what is logged goes where the log of this program goes
        log_level="warning",
        access_log=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_graceful_shutdown=int(options.drain_s),
    )
    at = f"[{host}]" if ":" in host else host
    click.echo(f"paligemma: http://{at}:{port}/mcp; Ctrl-C ends it", err=True)
    uvicorn.Server(config).run(sockets)
