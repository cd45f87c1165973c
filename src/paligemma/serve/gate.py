"""Who may come in: hosts, keys, rates, and how many at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from paligemma.serve.errors import ServeError
from paligemma.serve.keys import Keys
from paligemma.serve.options import ServerOptions

# What a browser needs before it has a key, and what watches the server.
_PUBLIC = ("/", "/health", "/ready", "/docs", "/docs.css", "/openapi.json")
_PUBLIC_FOLDER = "/static/"
_METRICS = "/metrics"
_MAX_BUCKETS = 4096


class Gate:
    """Admits requests; all of one event loop.

    Args:
        options: the bounds.
        keys: who may ask; None lets everyone.

    Attributes:
        is_draining: whether the server ends, and takes no more requests.
        num_inside: requests of clients that are being answered.
        num_body_bytes: of bodies that those sent.
    """

    def __init__(self, options: ServerOptions, keys: Keys | None = None) -> None:
        self._options, self._keys = options, keys
        self.is_draining = False
        self.num_inside = 0
        self.num_body_bytes = 0
        self._inside: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # client -> tokens, and when

    def require_host(self, headers: Mapping[str, str]) -> None:
        """Refuse a host or origin that is not ours, as after a rebinding of its name.

        Raises:
            ServeError: 403.
        """
        allowed = self._options.allowed_hosts
        if allowed is None:
            return
        origin = headers.get("origin")
        named = [f"//{headers.get('host', '')}", *([] if origin is None else [origin])]
        for one in named:
            try:
                host = urlsplit(one).hostname
            except ValueError:
                host = None
            if host is None or host not in allowed:
                raise ServeError(
                    f"this server answers as {', '.join(allowed)[:200]}, not as "
                    f"{one.removeprefix('//')[:100]!r}; its owner adds --allowed-host",
                    status=403,
                    code="host_not_allowed",
                )

    def client_of(self, path: str, headers: Mapping[str, str], address: str) -> str:
        """Who asks: the name of the key, or the address where the server has no keys.

        Raises:
            ServeError: 401.
        """
        if self._keys is None:
            return address
        name = self._keys.name_of(headers.get("authorization"))
        if name is None and not is_public(path):
            raise ServeError(
                "this server needs a key; send 'Authorization: Bearer KEY' with one of its own",
                status=401,
                code="invalid_api_key",
            )
        return address if name is None else name

    def enter(self, client: str) -> None:
        """Let a request in, which must `leave`.

        Raises:
            ServeError: 429 for too many requests, 503 while the server ends.
        """
        options = self._options
        if self.is_draining:
            raise ServeError(
                "the server is stopping; ask again in a moment",
                status=503,
                code="stopping",
                retry_after_s=5,
            )
        of_client = self._inside.get(client, 0)
        if self.num_inside >= options.max_requests or of_client >= options.max_requests_of_client:
            whose, bound = (
                ("you have", options.max_requests_of_client)
                if of_client >= options.max_requests_of_client
                else ("the server has", options.max_requests)
            )
            raise ServeError(
                f"{whose} {bound} requests at work already; wait for an answer",
                status=429,
                code="overloaded",
                retry_after_s=1,
            )
        self._take_token(client)
        self.num_inside += 1
        self._inside[client] = of_client + 1

    def leave(self, client: str) -> None:
        """A request is answered."""
        self.num_inside -= 1
        self._inside[client] -= 1
        if not self._inside[client]:
            del self._inside[client]

    def _take_token(self, client: str) -> None:
        per_minute = self._options.requests_per_minute
        if per_minute is None:
            return
        now = time.monotonic()
        if len(self._buckets) >= _MAX_BUCKETS and client not in self._buckets:
            self._buckets = {one: had for one, had in self._buckets.items() if now - had[1] < 60}
        tokens, before = self._buckets.get(client, (float(per_minute), now))
        tokens = min(per_minute, tokens + (now - before) * per_minute / 60)
        if tokens < 1:
            raise ServeError(
                f"a client may send {per_minute} requests a minute; wait",
                status=429,
                code="rate_limit_exceeded",
                retry_after_s=int((1 - tokens) * 60 / per_minute) + 1,
            )
        self._buckets[client] = tokens - 1, now


def is_public(path: str) -> bool:
    """Whether a path needs no key."""
    return path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)


def is_counted(path: str) -> bool:
    """Whether requests of a path are work, which is bounded and waited for."""
    return not is_public(path) and path != _METRICS
