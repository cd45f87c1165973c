"""Around every request: its id, the gate, the bounds of its body, headers, and its line in the log.

receive ──▶ _Body (bytes and time counted, disconnect seen) ──▶ application
send    ◀── _Answer (id and security headers, one record)   ◀──
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paligemma.serve.errors import ServeError, as_serve_error
from paligemma.serve.gate import Gate, is_counted
from paligemma.serve.options import ServerOptions
from paligemma.serve.record import Record, current

logger = logging.getLogger(__name__)
requests_log = logging.getLogger("paligemma.serve.requests")

CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class BodyRefused(Exception):
    """A body is too large or too slow; it passes through whatever reads the body.

    Args:
        answer: what the client is told.
    """

    def __init__(self, answer: ServeError) -> None:
        super().__init__(str(answer))
        self.answer = answer


class Front:
    """The outermost part of the application.

    Args:
        app: what answers.
        options: the bounds.
        gate: who may come in.
        seen: called with the record of each request, once.
    """

    def __init__(
        self, app: ASGIApp, *, options: ServerOptions, gate: Gate, seen: Callable[[Record], None]
    ) -> None:
        self._app, self._options, self._gate, self._seen = app, options, gate, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Files are small and sent whole, as RFC 9110 (14.2) allows.
        scope["headers"] = [one for one in scope["headers"] if one[0] != b"range"]
        headers = Headers(scope=scope)
        record = Record.of(headers.get("x-request-id"), scope["method"])
        token = current.set(record)
        body = _Body(receive, headers, record, self._options, self._gate)
        answer = _Answer(scope, send, record, body, self._finish)
        scope.setdefault("state", {})["record"] = record
        try:
            with contextlib.ExitStack() as inside:
                try:
                    self._admit(scope, headers, record, inside)
                    await self._answered(scope, body, answer)
                except Exception as error:
                    await self._fail(error, scope, answer)
        finally:
            body.close()
            answer.finish()
            current.reset(token)

    def _admit(
        self, scope: Scope, headers: Headers, record: Record, inside: contextlib.ExitStack
    ) -> None:
        path, gate = scope["path"], self._gate
        record.client = scope["client"][0] if scope.get("client") else "unknown"
        gate.require_host(headers)
        record.client = gate.client_of(path, headers, record.client)
        scope["state"]["client"] = record.client
        if is_counted(path):
            gate.enter(record.client)
            inside.callback(gate.leave, record.client)

    async def _answered(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        async def run() -> None:
            await self._app(scope, body.receive, answer.send)

        work = asyncio.create_task(run())
        # Who has the whole answer may go; the application may have something to end behind it.
        body.when_gone = lambda: answer.is_complete or work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            if not body.is_gone:
                raise

    async def _fail(self, error: Exception, scope: Scope, answer: _Answer) -> None:
        one = error.answer if isinstance(error, BodyRefused) else as_serve_error(error)
        if one.code == "server_error" and not isinstance(error, ServeError):
            logger.error("request %s failed", answer.record.request_id, exc_info=error)
        if not answer.is_started:
            response = JSONResponse(one.body(), one.status, one.headers)
            await response(scope, _nothing, answer.send)

    def _finish(self, record: Record) -> None:
        self._seen(record)
        requests_log.info("%s", json.dumps(record.line()))


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


class _Body:
    """A request's body, counted while it arrives, and whether the client is still there."""

    def __init__(
        self, receive: Receive, headers: Headers, record: Record, options: ServerOptions, gate: Gate
    ) -> None:
        self._receive, self._options, self._gate = receive, options, gate
        self._stated = headers.get("content-length", "")
        self._deadline = record.arrived + options.body_s
        self._num_bytes = 0
        self._ends = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        is_sent = "transfer-encoding" in headers or self._stated not in ("", "0")
        self.is_complete = not is_sent
        self._has_ended = False
        self._waits_for_leave = headers.get("expect", "").lower() == "100-continue"
        self.when_gone: Callable[[], object] = lambda: None

    @property
    def is_gone(self) -> bool:
        """Whether the client went away."""
        return self._ends.is_set()

    async def receive(self) -> Message:
        """The next piece, for the application.

        Raises:
            BodyRefused: too large, too slow, or too much together with the bodies of others.
        """
        if self._has_ended:
            await self._ends.wait()
            return {"type": "http.disconnect"}
        bound = self._options.max_body_bytes
        if self._stated.isdecimal() and int(self._stated[:20]) > bound:
            raise self._too_large(bound)
        message = await self._next()
        self._count(len(message.get("body", b"")))
        if self._num_bytes > bound:
            raise self._too_large(bound)
        if self._gate.num_body_bytes > self._options.max_bodies_bytes:
            raise BodyRefused(
                ServeError(
                    "the server holds as many pictures as it can; try again later",
                    status=503,
                    code="overloaded",
                    retry_after_s=1,
                )
            )
        if message["type"] == "http.disconnect":
            self._leave()
        elif not message.get("more_body", False):
            self.is_complete = self._has_ended = True
            self._watch = asyncio.create_task(self._watched())
        return message

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise BodyRefused(
                ServeError(
                    f"a body must arrive in {self._options.body_s:g} s; send it faster",
                    status=408,
                    code="timeout",
                )
            ) from None
        self._waits_for_leave = False
        return message

    def _too_large(self, bound: int) -> BodyRefused:
        return BodyRefused(
            ServeError(
                f"a body may have {bound} bytes; send a smaller picture",
                status=413,
                code="body_too_large",
            )
        )

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._gate.num_body_bytes += num_bytes

    async def _watched(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self._has_ended = True
        self._ends.set()
        self.when_gone()

    async def discard(self) -> None:
        """Read what is left within its time, so that the client comes to read the answer."""
        if self._waits_for_leave:
            return
        with contextlib.suppress(BodyRefused):
            while not self.is_complete:
                message = await self._next()
                self.is_complete = not message.get("more_body", False)

    def close(self) -> None:
        """The request is answered."""
        self._gate.num_body_bytes -= self._num_bytes
        if self._watch is not None:
            self._watch.cancel()


class _Answer:
    """What goes back, with the headers of every answer; the record ends with its last byte."""

    def __init__(
        self,
        scope: Scope,
        send: Send,
        record: Record,
        body: _Body,
        finished: Callable[[Record], None],
    ) -> None:
        self._scope, self._to_client, self._body = scope, send, body
        self.record = record
        self._finished: Callable[[Record], None] | None = finished
        self.is_started = False

    @property
    def is_complete(self) -> bool:
        """Whether its last byte was handed over."""
        return self._finished is None

    async def send(self, message: Message) -> None:
        """One message of the application."""
        if message["type"] == "http.response.start":
            self.is_started = True
            self.record.code = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-Id"] = self.record.request_id
            if "Accept-Ranges" in headers:
                headers["Accept-Ranges"] = "none"
            if not self._body.is_complete:
                headers["Connection"] = "close"
        elif not message.get("more_body", False):
            if not self._body.is_complete:
                await self._to_client({**message, "more_body": True})
                await self._body.discard()
                message = {"type": "http.response.body", "body": b""}
            self.finish()
        await self._to_client(message)

    def finish(self) -> None:
        """Tell of the request, once."""
        if self._finished is not None:
            finished, self._finished = self._finished, None
            self.record.route = getattr(self._scope.get("route"), "path", "other")
            finished(self.record)
