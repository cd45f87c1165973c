"""The Model Context Protocol: the tasks as tools of an agent, over stdio or HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import sys
import threading
from concurrent.futures import CancelledError
from functools import partial
from importlib.metadata import version
from typing import Any

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from paligemma.errors import PaliGemmaError
from paligemma.outputs.detections import Detections
from paligemma.serve.asking import Asking, Service
from paligemma.serve.bodies import validation_error
from paligemma.serve.errors import ServeError, as_serve_error
from paligemma.serve.mcp_tools import PLACE, TOOLS, ToolFields, schema_of
from paligemma.serve.pictures import picture_bytes
from paligemma.serve.roots import Roots
from paligemma.serve.tasks import TASKS
from paligemma.serve.worker import Answered

logger = logging.getLogger(__name__)

MAX_OVERLAY_SIDE_PX = 1280
MAX_LINE_BYTES = 64 << 20  # of a message over stdio
_CLIENT = "mcp"  # all callers share the turns of the worker
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

    async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(_context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        kind = TOOLS.get(params.name)
        if kind is None:
            raise MCPError(
                types.INVALID_PARAMS,
                f"there is no tool {params.name[:100]!r}; use {', '.join(TOOLS)}",
            )
        try:
            try:
                asked = kind.fields.model_validate(params.arguments or {})
            except ValidationError as error:
                raise validation_error(error) from None
            return await _answered(service, roots, params.name, asked)
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
    """
    server, lines = create_mcp(service, roots), _InputLines(asyncio.get_running_loop())
    async with stdio_server(stdin=lines) as (read, write):  # type: ignore[arg-type]
        await server.run(read, write, server.create_initialization_options())


class _InputLines:
    """The lines of standard input, read by a thread that never keeps the program from ending."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._next = loop, asyncio.Queue[bytes](1)
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
                try:
                    asyncio.run_coroutine_threadsafe(self._next.put(line), self._loop).result()
                except (RuntimeError, CancelledError):  # the loop has ended
                    return
            is_rest = not is_whole

    def __aiter__(self) -> _InputLines:
        return self

    async def __anext__(self) -> str:
        if line := await self._next.get():
            return line.decode(errors="replace")
        raise StopAsyncIteration


async def _answered(
    service: Service, roots: Roots, name: str, asked: ToolFields
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
        model=None, client=_CLIENT, pictures=[picture], questions=questions
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
