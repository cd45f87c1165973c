"""Server-sent events, and responses that consist of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from paligemma.serve.errors import as_serve_error

Entered = TypeVar("Entered")


def sse(data: Mapping[str, Any] | str, event: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n"


async def event_stream(
    asking: AbstractAsyncContextManager[Entered],
    events: Callable[[Entered], AsyncIterator[str]],
    *,
    error_event: str | None = None,
    last: str = "",
) -> StreamingResponse:
    """A response of server-sent events, which begins once there is the first of them.

    Until then an error has a status of its own; afterwards it is an event.

    Args:
        asking: entered for as long as the response lasts.
        last: what ends the stream in any case.
    """

    async def run() -> AsyncGenerator[str, None]:
        async with asking as entered:
            is_begun = False
            try:
                async for event in events(entered):
                    if not is_begun:
                        is_begun = True
                        yield ""
                    yield event
            except Exception as error:
                if not is_begun:
                    raise
                yield sse(as_serve_error(error).body(), error_event)
        if last:
            yield last

    running = run()
    await anext(running)
    return _EventStream(running)


class _EventStream(StreamingResponse):
    """Closes what it streams in any case, also where it never began to, as the client was gone."""

    def __init__(self, running: AsyncGenerator[str, None]) -> None:
        super().__init__(running, media_type="text/event-stream")
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._running):
            await super().__call__(scope, receive, send)
