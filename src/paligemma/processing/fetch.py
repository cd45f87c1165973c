"""Fetching a picture from a URL within one deadline, however slowly its bytes come."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from paligemma.errors import ImageError

SCHEMES = ("http://", "https://")
_KEPT = "%/:=&?~+!$,;'@()*[]|"  # of a path or query


def fetch(
    url: str,
    timeout_s: float,
    require_size: Callable[[int], None],
    *,
    address: tuple[str, int] | None = None,
) -> bytes:
    """The body behind a URL.

    Args:
        url: address that starts with one of `SCHEMES`; redirects to other schemes are refused.
        timeout_s: bound of the whole, with redirects, headings and body.
        require_size: called with the number of bytes that came so far; raises where they are too
            many.
        address: IP and port to connect to, whatever the host resolves to; then without proxies and
            redirects.

    Raises:
        ImageError: not reachable, not there, or not complete in time.
    """
    deadline = time.monotonic() + timeout_s
    body = bytearray()
    try:
        request = urllib.request.Request(_in_ascii(url), headers={"User-Agent": "paligemma"})
        with _opener(deadline, address).open(request, timeout=timeout_s) as response:
            while chunk := response.read(1 << 16):
                body += chunk
                require_size(len(body))
    except (OSError, ValueError, http.client.HTTPException) as error:
        late = time.monotonic() >= deadline
        reason = f"not complete after {timeout_s:.0f} s" if late else str(error)[:200]
        raise ImageError(
            f"the picture at {url[:200]} cannot be fetched ({reason}); download it first"
        ) from error
    return bytes(body)


def _in_ascii(url: str) -> str:
    """An address as it travels: letters outside ASCII and blanks escaped, what is escaped kept."""
    parts = urllib.parse.urlsplit(url.strip())
    place = parts.netloc
    if not place.isascii():
        place = place.encode("idna").decode()
    path, query = (urllib.parse.quote(part, safe=_KEPT) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, place, path, query, ""))


def _opener(deadline: float, address: tuple[str, int] | None) -> urllib.request.OpenerDirector:
    """Opens http and https, and nothing else that a redirect may name."""

    def connected(named: tuple[str, int], *how: Any) -> socket.socket:
        return socket.create_connection(named if address is None else address, *how)

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: object, **options: object) -> None:
            super().__init__(sock, *args, **options)  # type: ignore[arg-type]
            self.fp.close()
            self.fp = io.BufferedReader(_Timed(sock, deadline))

    class Plain(http.client.HTTPConnection):
        response_class = Response

        def connect(self) -> None:
            self.timeout = _left(deadline)
            self._create_connection = connected
            super().connect()

    class Secure(http.client.HTTPSConnection):
        response_class = Response

        def connect(self) -> None:
            self.timeout = _left(deadline)
            self._create_connection = connected
            super().connect()

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(None if address is None else {}),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        *([urllib.request.HTTPRedirectHandler()] if address is None else []),
        urllib.request.HTTPErrorProcessor(),
        Http(),
        Https(),
    ):
        opener.add_handler(handler)
    return opener


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return left


class _Timed(io.RawIOBase):
    """The bytes of a socket until a deadline; each one waits no longer than is left of it."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until closed
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        self._sock.settimeout(_left(self._deadline))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
