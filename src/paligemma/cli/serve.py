"""`paligemma serve`: the model over HTTP, with a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paligemma.cli.serve_library import LibraryChoice, writable_library_options
from paligemma.cli.serve_models import load_aloud, models_options
from paligemma.cli.serve_options import Safety, safety_options
from paligemma.errors import MissingExtraError

if TYPE_CHECKING:
    from paligemma.serve.offered import Offered


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@models_options
@writable_library_options
@safety_options
def serve(host: str, port: int, offered: Offered, library: LibraryChoice, safety: Safety) -> None:
    """Serve a model: OpenAI's API, this family's own, and a page; and an index of documents.

    \b
    paligemma serve
    paligemma serve --index library
    paligemma serve --model google/paligemma2-3b-mix-448 --quant int4 --adapter cards=runs/cards
    curl -F image=@desk.png -F labels=star -F labels=digit localhost:8000/v1/detect
    """
    try:
        from paligemma.serve import server
        from paligemma.serve.app import create_app
    except ImportError as error:
        raise MissingExtraError(
            f"a server needs the extra serve ({error.name} is missing); "
            "pip install 'paligemma[serve]'"
        ) from None
    from paligemma.serve.asking import Service
    from paligemma.serve.models import Models

    options, keys = safety.options(host, **offered.bounds), safety.keys(host)
    sockets = server.listen(host, port)
    models = Models(offered.specs(load_aloud), options)
    try:
        service = Service.of(models, options, library=library.open(options))
    except BaseException:
        for one in sockets:
            one.close()
        raise
    at = f"[{host}]" if ":" in host else host
    click.echo(
        f"paligemma: http://{at}:{sockets[0].getsockname()[1]} (API, page, /docs); Ctrl-C ends it",
        err=True,
    )
    app = create_app(service, keys=keys, loads_first=False)
    server.serve(app, service, sockets, trusted_proxies=safety.trusted_proxies)
