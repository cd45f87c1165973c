"""The Model Context Protocol: the tasks as tools of an agent, over stdio or HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from mcp import types
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import AnyHttpUrl, ValidationError
from starlette.types import ASGIApp

from paligemma.errors import PaliGemmaError
from paligemma.outputs.detections import Detections
from paligemma.serve.asking import Answered, Asking, Service
from paligemma.serve.bodies import validation_error
from paligemma.serve.errors import ServeError, as_serve_error
from paligemma.serve.gate import Gate
from paligemma.serve.keys import Keys
from paligemma.serve.mcp_search import call_search, search_tool
from paligemma.serve.mcp_tools import PLACE, SEARCH, TOOLS, ToolFields, schema_of
from paligemma.serve.middleware import Front
from paligemma.serve.pictures import picture_bytes
from paligemma.serve.roots import Roots
from paligemma.serve.tasks import TASKS

if TYPE_CHECKING:
    from mcp.shared._stream_protocols import ReadStream, WriteStream

logger = logging.getLogger(__name__)

MAX_OVERLAY_SIDE_PX = 1280
MAX_LINE_BYTES = 64 << 20  # of a message over stdio
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_INSTRUCTIONS = """\
A vision model that looks at one picture a call. Boxes are in pixels of the picture as it was given.
It answers in few words and does not reason: ask simple questions, one thing at a time.
A picture comes as path, below {roots}, or itself as image, in base64."""


def create_mcp(service: Service, roots: Roots) -> Server[Any]:
    """A server of the tools, which answers with a service.

    Args:
        service: computes already.
        roots: where pictures that are named may lie; what a client declares is not asked.
    """
    tools = [
        types.Tool(
            name=name,
            title=kind.title,
            description=kind.description,
            input_schema=schema_of(kind.fields),
            output_schema=schema_of(kind.result),
            annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
        for name, kind in TOOLS.items()
    ]
    searches = service.library is not None
    if searches:
        tools.append(search_tool())

    async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        kind = TOOLS.get(params.name)
        is_search = searches and params.name == SEARCH
        if kind is None and not is_search:
            names = ", ".join(tool.name for tool in tools)
            raise MCPError(
                types.INVALID_PARAMS,
                f"there is no tool {params.name[:100]!r}; use {names}",
            )
        try:
            if kind is None:
                return await call_search(service, roots, params.arguments)
            try:
                asked = kind.fields.model_validate(params.arguments or {})
            except ValidationError as error:
                raise validation_error(error, kind.fields) from None
            # Over HTTP the clients take turns, by their keys or addresses.
            client = getattr(getattr(context.request, "state", None), "client", "stdio")
            return await _answered(service, roots, client, params.name, asked)
        except Exception as error:
            if not isinstance(error, PaliGemmaError):
                logger.exception("the tool %s failed", params.name)
            content = [types.TextContent(type="text", text=str(as_serve_error(error)))]
            return types.CallToolResult(content=[*content], is_error=True)

    places = ", ".join(str(folder) for folder in roots.folders)
    return Server(
        "paligemma",
        title="PaliGemma",
        version=version("paligemma"),
        description="Find, outline, describe, read and answer about pictures.",
        instructions=_INSTRUCTIONS.format(roots=places or "no folder: none is open here"),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def run_stdio(service: Service, roots: Roots) -> None:
    """Serve the program that started this one until it closes standard input.

    Standard output carries the protocol alone: what else is written there goes to standard error.
    Once nobody reads it, serving ends as well.
    """
    server, lines = create_mcp(service, roots), _InputLines(asyncio.get_running_loop())
    try:
        async with stdio_server(stdin=lines) as (read, write):  # type: ignore[arg-type]
            messages = _Messages(read, write)
            await server.run(messages, write, server.create_initialization_options())
    except* BrokenPipeError:
        logger.info("nobody reads the answers any more")


def create_http(
    service: Service, roots: Roots, *, host: str, port: int, keys: Keys | None
) -> ASGIApp:
    """The same over HTTP, at /mcp: behind the hosts, keys and bounds of every server here.

    Args:
        host, port: where it listens; with `allowed_hosts` of the options the names of its Host.
        keys: who may ask; None lets everyone who reaches it.
    """
    options = service.options
    names = tuple(dict.fromkeys((*LOCAL_HOSTS, host, *(options.allowed_hosts or ()))))
    written = [f"[{name}]" if ":" in name else name for name in names]
    server = create_mcp(service, roots)
    inner = server.streamable_http_app(
        host=host,
        max_request_body_size=options.max_body_bytes,
        transport_security=TransportSecuritySettings(
            allowed_hosts=[form for name in written for form in (name, f"{name}:*")],
            allowed_origins=[
                f"{scheme}://{form}"
                for scheme in ("http", "https")
                for name in written
                for form in (name, f"{name}:*")
            ],
        ),
        # A session belongs to the key that began it.
        auth=None if keys is None else _auth(f"http://{written[names.index(host)]}:{port}"),
        token_verifier=None if keys is None else _Verifier(keys),
    )
    gate = Gate(replace(options, allowed_hosts=names), keys)
    return Front(inner, options=options, gate=gate, seen=lambda record: None)


def _auth(url: str) -> AuthSettings:
    """Keys without a server of OAuth, whose address is then never used."""
    return AuthSettings(issuer_url=AnyHttpUrl(url), resource_server_url=None)


class _Verifier(TokenVerifier):
    """Tells the protocol's package whose key a request has."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def verify_token(self, token: str) -> AccessToken | None:
        """Who has the key; None for nobody."""
        name = self._keys.name_of(f"Bearer {token}")
        return None if name is None else AccessToken(token=token, client_id=name, scopes=[])


class _InputLines:
    """The lines of standard input, read by a thread that never keeps the program from ending."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._next = loop, asyncio.Queue[bytes]()
        self._has_room = threading.Semaphore(
            1
        )  # one message waits, and is read on when it is taken
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        # Python waits at its end for the lock of sys.stdin, which a blocked read would hold.
        source = open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115
        is_rest, line = False, b"start"
        while line:
            line = source.readline(MAX_LINE_BYTES)
            is_whole = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
            if not is_whole and not is_rest:
                logger.warning("a message of more than %d bytes was dropped", MAX_LINE_BYTES)
            if not line or (is_whole and not is_rest):
                self._has_room.acquire()
                try:
                    self._loop.call_soon_threadsafe(self._next.put_nowait, line)
                except RuntimeError:  # the loop has ended
                    return
            is_rest = not is_whole

    def __aiter__(self) -> _InputLines:
        return self

    async def __anext__(self) -> str:
        while line := await self._next.get():
            self._has_room.release()
            if line.strip():
                return line.decode(errors="replace")
        raise StopAsyncIteration


class _Messages:
    """The messages of a client; what is none is answered with an error, and not handed on."""

    def __init__(
        self, read: ReadStream[SessionMessage | Exception], write: WriteStream[SessionMessage]
    ) -> None:
        self._read, self._write = read, write

    async def receive(self) -> SessionMessage | Exception:
        """The next one that is whole."""
        return await self._whole(self._read.receive)

    async def _whole(self, take: Callable[[], Awaitable[SessionMessage | Exception]]) -> Any:
        while isinstance(found := await take(), Exception):
            words = "a message must be a line of JSON-RPC 2.0 in UTF-8, got something else"
            error = types.ErrorData(code=types.PARSE_ERROR, message=f"{words}; send it again")
            await self._write.send(
                SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=None, error=error))
            )
        return found

    async def aclose(self) -> None:
        """Read no more."""
        await self._read.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        return await self._whole(self._read.__anext__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


async def _answered(
    service: Service, roots: Roots, client: str, name: str, asked: ToolFields
) -> types.CallToolResult:
    """The result of one call; leaving it early stops the answer at its next token."""
    task = TASKS[name]
    stated = asked.model_dump(exclude_unset=True, exclude=set(PLACE))
    try:
        request = task.fields.model_validate(stated)
    except ValidationError as error:
        raise validation_error(error) from None
    bound = service.options.max_new_tokens
    questions = task.questions(request, bound, has_picture=True)
    picture = await service.run(lambda: _picture(service, roots, asked))
    async with service.ask(
        model=None, client=client, pictures=[picture], questions=questions, follows=False
    ) as asking:
        async for event in asking.events:
            if isinstance(event, Answered):
                body = _body(asking, event)
                content: list[Any] = [
                    types.TextContent(type="text", text=json.dumps(body, ensure_ascii=False))
                ]
                if asked.overlay:
                    png = await service.run(partial(_overlay, event, body["prompt"]))
                    data = base64.b64encode(png).decode()
                    content.append(
                        types.ImageContent(type="image", data=data, mime_type="image/png")
                    )
                return types.CallToolResult(content=content, structured_content=body)
    raise ServeError("the answer was cancelled", status=503, code="cancelled")


def _picture(service: Service, roots: Roots, asked: ToolFields) -> bytes:
    if (asked.path is None) == (asked.image is None):
        raise ServeError("a picture comes as path or as image; give one of the two", param="path")
    if asked.path is not None:
        return roots.read(asked.path)
    text, bound = asked.image or "", service.options.max_body_bytes
    if len(text) > bound:
        raise ServeError(
            f"a picture that is sent may have {bound} characters of base64, got {len(text)}; "
            "send a smaller one, or its path",
            param="image",
        )
    return picture_bytes(text)


def _body(asking: Asking, event: Answered) -> dict[str, Any]:
    question, picture = asking.job.questions[0], asking.job.picture
    assert picture is not None
    width, height = picture.image_wh
    return {
        "model": asking.lease.name,
        "prompt": " ; ".join(question.prefixes),
        "image": {"width": width, "height": height},
        **event.result.to_json(),
        "finish_reason": "length" if any(one.is_cut for one in event.written) else "stop",
    }


def _overlay(event: Answered, prompt: str) -> bytes:
    from paligemma.outputs.draw import draw_text_answer

    result = event.result
    if isinstance(result, Detections):
        drawn = result.draw()
    else:
        assert event.encoded is not None
        assert event.encoded.open_picture is not None
        drawn = draw_text_answer(event.encoded.open_picture(), result.text, prompt=prompt)
    drawn.thumbnail((MAX_OVERLAY_SIDE_PX, MAX_OVERLAY_SIDE_PX))
    memory = io.BytesIO()
    drawn.save(memory, "PNG")
    return memory.getvalue()
