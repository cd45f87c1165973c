"""Who may ask a server, what it may reach, and how much it takes; as options of its command."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import NamedPath, gathered_options
from paligemma.errors import ConfigError

if TYPE_CHECKING:
    from paligemma.serve.keys import Keys
    from paligemma.serve.options import ServerOptions

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Safety:
    """Of a server, as it was asked for."""

    api_key_file: Path | None
    allowed_hosts: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    remote_hosts: tuple[str, ...]
    media_roots: tuple[Path, ...]
    bounds: dict[str, Any]

    def options(self, host: str, **more: Any) -> ServerOptions:
        """The bounds of a server that listens at a host; with others that were stated."""
        from paligemma.serve.options import ServerOptions

        names = tuple(name.lower().strip("[]") for name in self.allowed_hosts)
        is_known = names or is_loopback(host)
        return ServerOptions(
            allowed_hosts=(*_LOOPBACK, *names) if is_known else None,
            remote_hosts=self.remote_hosts,
            media_roots=self.media_roots,
            **{**self.bounds, **more},
        )

    def keys(self, host: str) -> Keys | None:
        """The keys; without any, a server that others can reach says so."""
        from paligemma.serve.keys import Keys

        if self.api_key_file is not None:
            return Keys.from_file(self.api_key_file)
        if not is_loopback(host):
            click.echo(
                f"paligemma: whoever reaches {host} may ask, as no key is needed; name keys with "
                "--api-key-file",
                err=True,
            )
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Limit(click.ParamType):
    name = "limit"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        from paligemma.serve.options import read_number

        name, _, number = value.partition("=")
        try:
            return name, read_number(name, number)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def _choose(values: dict[str, Any]) -> Safety:
    return Safety(bounds=dict(values.pop("limits")), **values)


def _help_of_limits() -> str:
    from paligemma.serve.options import numbers

    shown = ", ".join(f"{name} {default or 'off'}" for name, (_, default) in numbers().items())
    return f"A bound, as max_rows=8; may be repeated. There are {shown}."


safety_options = gathered_options(
    "safety",
    [
        click.option(
            "--api-key-file",
            type=NamedPath(dir_okay=False, exists=True),
            metavar="FILE",
            help="Keys that may ask, one a line, as name:key or key.",
        ),
        click.option(
            "--allowed-host",
            "allowed_hosts",
            multiple=True,
            metavar="HOST",
            help="A name that browsers know the server by; localhost and 127.0.0.1 always are.",
        ),
        click.option(
            "--trusted-proxy",
            "trusted_proxies",
            multiple=True,
            metavar="ADDRESS",
            help="A proxy before the server, whose X-Forwarded-For is believed.",
        ),
        click.option(
            "--allow-url",
            "remote_hosts",
            multiple=True,
            metavar="HOST",
            help="A host from which pictures may be fetched; none by default.",
        ),
        click.option(
            "--media-root",
            "media_roots",
            type=NamedPath(file_okay=False, exists=True),
            multiple=True,
            metavar="DIR",
            help="A folder below which pictures may be named as file:a.png; none by default.",
        ),
        click.option(
            "--limit",
            "limits",
            type=_Limit(),
            multiple=True,
            metavar="NAME=NUMBER",
            help=_help_of_limits(),
        ),
    ],
    _choose,
)
