"""The tools over HTTP: keys, names, bounds, and who may go on with whose session."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

import anyio
import httpx
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from starlette.types import ASGIApp
from tiny_folder import write_random_tiny

from paligemma import PaliGemma
from paligemma.cli import main
from paligemma.serve.asking import Service
from paligemma.serve.keys import Keys
from paligemma.serve.mcp import create_http
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from paligemma.serve.roots import Roots

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = Keys({"anna": "key-of-anna", "ben": "key-of-ben1"})
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@contextmanager
def listening(make: Callable[[int], ASGIApp]) -> Iterator[str]:
    """The address of an application that listens while the block runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        config = uvicorn.Config(make(port), log_config=None, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def service(local: PaliGemma) -> Iterator[Service]:
    options = ServerOptions(max_body_bytes=1 << 20)
    found = Service.of(Models([ModelSpec(name="tiny", load=lambda: local)], options), options)
    found.worker.start()
    yield found
    found.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """A server that knows two keys."""

    def make(port: int) -> ASGIApp:
        return create_http(service, Roots([EXAMPLES]), host="127.0.0.1", port=port, keys=KEYS)

    with listening(make) as address:
        yield address


def talk(url: str, key: str | None, said: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        headers = None if key is None else {"Authorization": f"Bearer {key}"}
        async with (
            create_mcp_http_client(headers) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            return await said(client)

    return anyio.run(run)


def test_who_has_a_key_is_answered(url: str) -> None:
    result = talk(url, "key-of-anna", lambda one: one.call_tool("read", {"path": "desk.png"}))
    assert result.structured_content["text"] == "HELLO 5"
    refused = talk(url, "key-of-ben1", lambda one: one.call_tool("read", {"path": "../README.md"}))
    assert refused.is_error


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer wrong", "Bearer key-of-ann", "key-of-anna"]
)
def test_who_has_none_is_not(url: str, authorization: str | None) -> None:
    headers = JSON if authorization is None else {**JSON, "Authorization": authorization}
    answer = httpx.post(url, json=HELLO, headers=headers)
    assert answer.status_code == 401
    assert "needs a key" in answer.json()["error"]["message"]


def test_a_session_belongs_to_the_key_that_began_it(url: str) -> None:
    anna = {**JSON, "Authorization": "Bearer key-of-anna"}
    session = httpx.post(url, json=HELLO, headers=anna).headers["mcp-session-id"]
    listed = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    of_session = {"Mcp-Session-Id": session, "MCP-Protocol-Version": "2025-06-18"}
    assert httpx.post(url, json=listed, headers={**anna, **of_session}).status_code == 200
    ben = {**JSON, "Authorization": "Bearer key-of-ben1"}
    assert httpx.post(url, json=listed, headers={**ben, **of_session}).status_code == 404


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Host", "evil.example", 403),
        ("Host", "127.0.0.1.evil.example", 403),
        ("Origin", "http://evil.example", 403),
        ("Origin", "null", 403),
        ("Origin", "http://localhost:3000", 200),
        ("Content-Type", "text/plain", 400),
        ("Accept", "text/html", 406),
    ],
)
def test_a_rebound_name_and_a_foreign_page_are_refused(
    url: str, name: str, value: str, status: int
) -> None:
    headers = {**JSON, "Authorization": "Bearer key-of-anna", name: value}
    assert httpx.post(url, content=json.dumps(HELLO), headers=headers).status_code == status


def test_a_body_beyond_the_bound_is_refused(url: str) -> None:
    headers = {**JSON, "Authorization": "Bearer key-of-anna"}
    answer = httpx.post(url, content=b"x" * (2 << 20), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"jsonrpc": "2.0"}', b"\xff\xfe"])
def test_what_is_no_message_is_refused_and_the_server_goes_on(url: str, body: bytes) -> None:
    headers = {**JSON, "Authorization": "Bearer key-of-anna"}
    assert 400 <= httpx.post(url, content=body, headers=headers).status_code < 500
    assert httpx.post(url, json=HELLO, headers=headers).status_code == 200


def test_without_keys_everyone_who_reaches_it_is_answered(service: Service) -> None:
    def make(port: int) -> ASGIApp:
        return create_http(service, Roots([]), host="127.0.0.1", port=port, keys=None)

    with listening(make) as address:
        assert len(talk(address, None, lambda client: client.list_tools()).tools) == 6
        refused = talk(address, None, lambda one: one.call_tool("read", {"path": "desk.png"}))
    assert "--root" in refused.content[0].text


def test_a_call_whose_client_goes_stops(tmp_path: Path) -> None:
    folder = write_random_tiny(tmp_path / "endless")
    options = ServerOptions(max_new_tokens=4096)
    models = Models(
        [ModelSpec(name="endless", load=lambda: PaliGemma.from_pretrained(folder))], options
    )
    service = Service.of(models, options)
    service.worker.start()

    async def asked(client: Client) -> None:
        arguments = {"path": "desk.png", "prompt": "caption en", "max_new_tokens": 4096}
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "ask", arguments)
            with anyio.fail_after(30):
                while not service.worker.load.running:
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        with anyio.fail_after(2):
            while service.worker.load.running:
                await anyio.sleep(0.005)

    def make(port: int) -> ASGIApp:
        return create_http(service, Roots([EXAMPLES]), host="127.0.0.1", port=port, keys=None)

    try:
        with listening(make) as address:
            talk(address, None, asked)
    finally:
        service.close()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--http", "0.0.0.0:8001"), "needs keys"),
        (("--http", "[::]:8001"), "needs keys"),
        (("--http", "here"), "no address"),
        (("--http", "99999"), "no address"),
        (("--http", "0"), "no address"),
        (("--http", "a b:80"), "no address"),
        (("--api-key-file", __file__), "for --http"),
        (("--allowed-host", "me"), "for --http"),
        (("--http", "8001", "--api-key-file", os.devnull), "has at least one"),
        (("--limit", "max_rowz=3"), "did you mean max_rows?"),
        (("--root", "no-such-folder"), "root must be a folder"),
        (("--root", __file__), "root must be a folder"),
        (("--allow-url",), "requires an argument"),
        (("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_what_is_wrong_at_the_start_is_a_sentence(
    words: tuple[str, ...], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["mcp", *(() if "--model" in words else ("--model", "tiny")), *words])
    assert ended.value.code == 2
    printed = capfd.readouterr()
    assert sentence in printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err


def test_an_address_that_is_taken_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["mcp", "--model", "tiny", "--http", str(taken.getsockname()[1])])
    assert ended.value.code == 1
    assert "choose another" in capfd.readouterr().err
