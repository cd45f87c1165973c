"""A server at a port of this process, for tests of what only a socket shows."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from paligemma.serve.options import ServerOptions
from paligemma.serve.server import Connection


@dataclass(frozen=True)
class Live:
    """Where it listens."""

    port: int
    connections: Collection[object]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """A connection, which waits no longer than 10 s."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def send(self, data: bytes) -> bytes:
        """What comes back for raw bytes."""
        with self.connect() as one:
            one.sendall(data)
            return answer_of(one)


def answer_of(connection: socket.socket) -> bytes:
    """Heading and body of one answer whose length is stated, or all until the server closes."""
    found = b""
    while piece := connection.recv(1 << 16):
        found += piece
        head, end, body = found.partition(b"\r\n\r\n")
        if end and b"\r\ncontent-length: %d\r\n" % len(body) in head.lower() + b"\r\n":
            break
    return found


@contextmanager
def live(app: FastAPI, bounds: ServerOptions | None = None) -> Iterator[Live]:
    """The application at a port, in a thread; its connections are bounded as those of a server."""
    http: Any = partial(Connection, bounds=bounds or ServerOptions())
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=http,
        ws="none",
        log_config=None,
        timeout_keep_alive=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Live(port, server.server_state.connections)
    finally:
        server.should_exit = True
        thread.join(10)
