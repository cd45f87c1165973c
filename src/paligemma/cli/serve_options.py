"""Who may ask a server, what it may reach, and how much it takes; as options of its command."""

from __future__ import annotations

import difflib
import functools
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import click

from paligemma.cli.options import NamedPath, gathered_options

if TYPE_CHECKING:
    from paligemma.serve.keys import Keys
    from paligemma.serve.options import ServerOptions

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@functools.cache
def _numbers() -> dict[str, tuple[Callable[[str], float], float | None]]:
    """The bounds by name: how their text is read, and their defaults."""
    from paligemma.serve.options import ServerOptions

    defaults = {field.name: field.default for field in fields(ServerOptions)}
    return {
        name: (float if kind is float else int, cast(Any, defaults[name]))
        for name, kind in get_type_hints(ServerOptions).items()
        if kind in (int, float, int | None)
    }


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
        name, _, number = value.partition("=")
        numbers = _numbers()
        if name not in numbers:
            near = difflib.get_close_matches(name, numbers, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(numbers)}"
            self.fail(f"there is no bound {name[:50]!r}; {hint}", param, ctx)
        try:
            found = numbers[name][0](number)
        except ValueError:
            found = -1
        if not 0 < found < 1 << 62:
            self.fail(
                f"{name} is a number above 0, as NAME=NUMBER, got {value[:100]!r}", param, ctx
            )
        return name, found


def _choose(values: dict[str, Any]) -> Safety:
    return Safety(bounds=dict(values.pop("limits")), **values)


def _help_of_limits() -> str:
    shown = ", ".join(f"{name} {default or 'off'}" for name, (_, default) in _numbers().items())
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
