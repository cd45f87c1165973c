"""Pictures at addresses of hosts that the server's owner named, and nowhere else.

The name is compared as a whole, all its addresses must be public, and the connection goes to one
that was checked, so that nothing can change between check and use. No redirects, no proxies.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from paligemma.errors import ConfigError
from paligemma.processing.fetch import fetch
from paligemma.processing.sources import require_size
from paligemma.serve.errors import ServeError

_PORTS = {"http": 80, "https": 443}
_MAX_CHARS = 2000
_GIVEN_OUT = ipaddress.ip_network("2000::/3")  # of IPv6; elsewhere lie translations to IPv4
_TUNNELS = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/23"))
_HOST = re.compile(r"([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::([0-9]{1,5}))?", re.ASCII)

Resolve = Callable[[str, int], Sequence[str]]


def addresses_of(host: str, port: int) -> list[str]:
    """What a name stands for, as the system resolves it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Remote:
    """Fetches pictures.

    Args:
        hosts: names as `pictures.example`, or with a port; none, and nothing is fetched.
        timeout_s, max_bytes: bounds of one picture.
        resolve: gives the addresses of a host.

    Raises:
        ConfigError: one is no name of a host.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        timeout_s: float,
        max_bytes: int,
        resolve: Resolve = addresses_of,
    ) -> None:
        self._allowed: set[tuple[str, int | None]] = set()
        for host in hosts:
            parts = _HOST.fullmatch(host.lower())
            if parts is None:
                raise ConfigError(
                    f"--allow-url takes the name of a host, as pictures.example, got {host!r:.100}"
                )
            self._allowed.add((parts[1], int(parts[2]) if parts[2] else None))
        self._timeout_s, self._max_bytes, self._resolve = timeout_s, max_bytes, resolve

    def fetch(self, url: str, param: str) -> bytes:
        """The bytes at an address.

        Raises:
            ServeError: the address is not allowed.
            ImageError: it is not reachable, not there, too large, or too slow.
        """
        host, port = self._checked(url, param)
        try:
            addresses = list(self._resolve(host, port))
        except (OSError, UnicodeError):
            addresses = []
        if not addresses or not all(is_public(one) for one in addresses):
            raise _refused(f"{host} has no public address", param)
        return fetch(
            url,
            self._timeout_s,
            lambda size: require_size(size, "the picture", self._max_bytes),
            address=(addresses[0], port),
        )

    def _checked(self, url: str, param: str) -> tuple[str, int]:
        if not self._allowed:
            raise ServeError(
                "remote pictures are off here; send the picture itself, as a data URL or upload",
                code="remote_image_off",
                param=param,
            )
        if len(url) > _MAX_CHARS or re.search(r"[^!-~]|\\", url):
            raise _refused("it has characters that no address has, or too many", param)
        try:
            parts = urlsplit(url)
            host, stated = parts.hostname or "", parts.port
        except ValueError:
            raise _refused("it is none", param) from None
        if parts.scheme not in _PORTS or "@" in parts.netloc:
            raise _refused("it must be http:// or https:// and a host, without a user", param)
        port = _PORTS[parts.scheme] if stated is None else stated
        is_default = port == _PORTS[parts.scheme]
        if not ((host, stated) in self._allowed or (is_default and (host, None) in self._allowed)):
            raise _refused(f"pictures of {host[:100]!r} at this port are not allowed", param)
        return host, port


def _refused(why: str, param: str) -> ServeError:
    return ServeError(
        f"a picture cannot be fetched from this address: {why}; send the picture itself",
        code="remote_image_refused",
        param=param,
    )


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and leads nowhere else by a translation."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.scope_id or ip not in _GIVEN_OUT or any(ip in one for one in _TUNNELS)
    ):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
