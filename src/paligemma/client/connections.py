"""Sends bodies to one address of a server and keeps the connections; for any number of threads."""

from __future__ import annotations

import urllib.parse
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection

from paligemma.errors import ConfigError, RunError


class Connections:
    """Connections to a server of which each serves one request at a time.

    Args:
        url: of the server, such as "http://localhost:8000".
        path: below it, to which everything is sent that names no other.
        api_key: one of the server's keys.
        timeout_s: bound of a connection and of waiting for each part of an answer.

    Raises:
        ConfigError: no address of HTTP, or a key that no header can hold.
    """

    def __init__(self, url: str, path: str, *, api_key: str | None, timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigError(f"a server is 'http://HOST:PORT', got {url!r:.200}")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connect = partial(kind, parts.hostname, port, timeout=timeout_s)
        self._base, self._path = parts.path.rstrip("/"), path
        self._headers = {"Content-Type": "application/json", "User-Agent": "paligemma"}
        if api_key is not None:
            if not api_key.isascii() or not api_key.isprintable():
                raise ConfigError("a key consists of printable ASCII characters, got others")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._idle: list[HTTPConnection] = []

    def send(
        self, body: bytes | None, path: str | None = None
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """The head of the server's response, and its connection: `keep` or close it afterwards.

        Args:
            body: JSON; None asks with GET.
            path: below the server's address.

        Raises:
            RunError: the server does not answer.
        """
        method = "GET" if body is None else "POST"
        target = f"{self._base}{path or self._path}"
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            is_kept = connection.sock is not None
            try:
                connection.request(method, target, body, self._headers)
                return connection, connection.getresponse()
            except (OSError, HTTPException) as error:
                connection.close()
                if is_kept and not isinstance(error, TimeoutError):
                    continue  # closed by the server meanwhile
                raise RunError(
                    f"the server at {connection.host}:{connection.port} does not answer "
                    f"({str(error) or type(error).__name__:.200}); see whether it runs"
                ) from None
            except BaseException:
                connection.close()
                raise

    def keep(self, connection: HTTPConnection) -> None:
        """Keep a connection whose response was read to its end, for the next request."""
        self._idle.append(connection)

    def close(self) -> None:
        """Close all that are not in use; the next request opens another."""
        while self._idle:
            self._idle.pop().close()
