"""The process of a server: its socket, its signals, and how it ends.

SIGTERM, Ctrl-C ──▶ no new requests (503), /ready 503 ──▶ running ones end, or drain_s pass ──▶ 0
a second one, or one before the model is loaded ──▶ 128 + its number, at once
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from paligemma.errors import ConfigError, RunError
from paligemma.serve.asking import Service
from paligemma.serve.errors import ServeError
from paligemma.serve.middleware import requests_log
from paligemma.serve.options import ServerOptions
from paligemma.serve.record import Record
from paligemma.stop_signals import handled_by

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

TAKEN_BYTES = 64 << 10  # of an answer that waits, within send_s
_ENDING_S = 1.0  # for the last bytes, after the last answer


def listen(host: str, port: int) -> list[socket.socket]:
    """Take a port, before anything else costs time.

    Raises:
        ConfigError: no such host.
        RunError: the port is taken, or may not be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"host must be an address of this machine, got {host!r:.100}") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in found[: None if port else 1]:
            sockets.append(one := socket.socket(family, kind, protocol))
            if os.name == "posix":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(256)
    except OSError as error:
        for one in sockets:
            one.close()
        reason = {
            errno.EADDRINUSE: "another program has it",
            errno.EACCES: "only root may",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(error.errno or 0, error.strerror or str(error))
        raise RunError(
            f"port {port} of {host} cannot be listened at: {reason}; choose another"
        ) from None
    return sockets


def serve(
    app: FastAPI,
    service: Service,
    sockets: Sequence[socket.socket],
    *,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Answer requests until a signal ends it; one line of JSON a request goes to standard output.

    Args:
        app: made by `create_app` of the service, with `loads_first=False`.
        sockets: that `listen` took.
        trusted_proxies: addresses whose X-Forwarded-For is believed.

    Raises:
        PaliGemmaError: the default model does not load.
    """
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(logging.Formatter("%(message)s"))
    lines.handleError = lambda record: None  # type: ignore[method-assign]  # nobody reads them
    requests_log.addHandler(lines)
    requests_log.setLevel(logging.INFO)
    requests_log.propagate = False
    config = uvicorn.Config(
        app,
        http=partial(Connection, bounds=service.options),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_graceful_shutdown=int(_ENDING_S),
        h11_max_incomplete_event_size=32 << 10,
    )
    server = _Server(config, app, service)
    try:
        server.run(list(sockets))
    finally:
        requests_log.removeHandler(lines)
    if server.failure is not None:
        raise server.failure


class _Server(uvicorn.Server):
    """A server that lets running requests end."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, service: Service) -> None:
        super().__init__(config)
        self._app, self._service = app, service
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None

    async def main_loop(self) -> None:
        self._app.state.loading.add_done_callback(self._loaded)
        await super().main_loop()

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        error = None if loading.cancelled() else loading.exception()
        if error is not None:
            self.failure, self.should_exit = error.__cause__ or error, True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        with handled_by(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_second = self._app.state.gate.is_draining
        if is_second or not self._app.state.is_ready or self._loop is None:
            # A thread that computes or loads would be waited for.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(128 + sig)
        self._app.state.gate.is_draining = True
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        gate, drain_s = self._app.state.gate, self._service.options.drain_s
        if gate.num_inside:
            logger.warning("stopping in %g s at most; running: %d", drain_s, gate.num_inside)
        deadline = time.monotonic() + drain_s
        while gate.num_inside and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if gate.num_inside:
            logger.warning("stopping now; answers that are cut: %d", gate.num_inside)
            await asyncio.get_running_loop().run_in_executor(None, self._service.worker.close)
        self.should_exit = True


class Connection(H11Protocol):
    """A connection whose headings must come in time and whose answers must be taken in time, and
    whose errors have the common shape."""

    def __init__(self, *, bounds: ServerOptions, **given: Any) -> None:
        super().__init__(**given)
        self._bounds = bounds
        self._late: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.max_connections:
            transport.close()
        else:
            self._expect_heading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_heading()
        self._is_taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._has_heading()
        elif self._late is None:
            self._expect_heading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_taken()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_taking()  # a transport that closes waits for its last bytes to be taken

    def _expect_taking(self) -> None:
        self._is_taken()
        left = self.transport.get_write_buffer_size()
        self._untaken = self.loop.call_later(self._bounds.send_s, self._require_taking, left)

    def _require_taking(self, left: int) -> None:
        if left - self.transport.get_write_buffer_size() < TAKEN_BYTES:
            self.transport.abort()
        else:
            self._expect_taking()

    def _is_taken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _expect_heading(self) -> None:
        self._late = self.loop.call_later(self._bounds.body_s, self._end)

    def _end(self) -> None:
        self.transport.close()
        self._expect_taking()

    def _has_heading(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(ServeError("the request is not HTTP/1.1; check the client").body())
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {Record.of(None, '').request_id}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(f"{head}{body}".encode())
        self.transport.close()
