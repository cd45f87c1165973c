"""The tools of an agent, called by the protocol's own client; docs/agents.md starts the program."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

import anyio
from mcp import Client
from mcp.shared.exceptions import MCPError
from PIL import Image
from tiny_folder import write_random_tiny

from paligemma import PaliGemma
from paligemma.serve.asking import Service
from paligemma.serve.mcp import create_mcp
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from paligemma.serve.roots import Roots

EXAMPLES = Path(__file__).parents[2] / "examples"
DESK = EXAMPLES / "desk.png"
WORDS = {"model", "prompt", "image", "text", "score", "finish_reason"}
FOUND = {"model", "prompt", "image", "detections", "text", "rest", "finish_reason"}


def service_of(load: Callable[[], PaliGemma], **bounds: Any) -> Service:
    options = ServerOptions(**bounds)
    return Service.of(Models([ModelSpec(name="tiny", load=load)], options), options)


@pytest.fixture(scope="module")
def service(local: PaliGemma) -> Iterator[Service]:
    found = service_of(lambda: local)
    found.worker.start()
    yield found
    found.close()


def talk(service: Service, said: Callable[[Client], Coroutine[Any, Any, Any]], **how: Any) -> Any:
    """Run a conversation with a server of the examples folder."""

    async def run() -> Any:
        async with Client(create_mcp(service, Roots([EXAMPLES])), **how) as client:
            return await said(client)

    return anyio.run(run)


def called(service: Service, tool: str, **arguments: Any) -> Any:
    return talk(service, lambda client: client.call_tool(tool, arguments))


def test_every_tool_states_what_it_takes_and_gives(service: Service) -> None:
    tools = talk(service, lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == [
        *("detect", "segment", "caption", "answer", "read", "ask")
    ]
    for tool in tools:
        assert {"path", "image", "overlay", "max_new_tokens"} <= tool.input_schema[
            "properties"
        ].keys()
        assert tool.input_schema["additionalProperties"] is False
        assert tool.input_schema.get("required", []) == {
            "detect": ["labels"],
            "segment": ["labels"],
            "answer": ["question"],
            "ask": ["prompt"],
        }.get(tool.name, [])
        for place, field in tool.input_schema["properties"].items():
            assert "title" not in field
            assert field["description"], place
        assert {"model", "prompt", "text"} <= tool.output_schema["properties"].keys()
        assert tool.annotations.read_only_hint
        assert tool.description


def test_detections_are_those_of_the_facade(service: Service, local: PaliGemma) -> None:
    result = called(service, "detect", path="desk.png", labels=["star", "heart"], threshold=0.3)
    body = result.structured_content
    assert set(body) == FOUND
    here = local.detect(DESK, ["star", "heart"], threshold=0.3).to_json()
    assert {key: body[key] for key in here} == here
    assert body["image"] == {"width": 640, "height": 480}
    assert body["prompt"] == "detect star ; heart"
    (text,) = result.content
    assert json.loads(text.text) == body


def test_masks_are_run_lengths_and_the_overlay_is_a_picture(
    service: Service, local: PaliGemma
) -> None:
    result = called(service, "segment", path=str(DESK), labels="star", overlay=True)
    (item,) = result.structured_content["detections"]
    assert item["mask"] == local.segment(DESK, "star").to_json()["detections"][0]["mask"]
    _, picture = result.content
    assert picture.mime_type == "image/png"
    with Image.open(io.BytesIO(base64.b64decode(picture.data))) as drawn:
        assert drawn.format == "PNG"
        assert max(drawn.size) <= 1280


@pytest.mark.parametrize(
    ("tool", "arguments", "prompt"),
    [
        ("caption", {}, "caption en"),
        ("caption", {"lang": "de", "style": "cap"}, "cap de"),
        ("answer", {"question": "what color is the star?"}, "answer en what color is the star?"),
        ("read", {}, "ocr"),
        ("ask", {"prompt": "question en blue"}, "question en blue"),
    ],
)
def test_words_are_those_of_the_facade(
    service: Service, local: PaliGemma, tool: str, arguments: dict[str, Any], prompt: str
) -> None:
    result = called(service, tool, path="desk.png", **arguments)
    body = result.structured_content
    assert set(body) == WORDS
    assert body["prompt"] == prompt
    assert body["text"] == local.generate(DESK, prompt).text
    assert body["finish_reason"] == "stop"


def test_ask_gives_boxes_where_the_prompt_asks_for_them(service: Service) -> None:
    assert (
        set(called(service, "ask", path="desk.png", prompt="detect star").structured_content)
        == FOUND
    )


def test_choices_bounds_and_overlays_of_words(service: Service) -> None:
    result = called(
        service, "answer", path="desk.png", question="is it?", choices=["yes", "no"], overlay=True
    )
    assert result.structured_content["text"] in ("yes", "no")
    assert [one.type for one in result.content] == ["text", "image"]
    cut = called(service, "caption", path="desk.png", max_new_tokens=2).structured_content
    assert cut["finish_reason"] == "length"


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,", ""])
def test_a_picture_may_be_sent_itself(service: Service, head: str) -> None:
    text = head + base64.b64encode(DESK.read_bytes()).decode()
    assert called(service, "read", image=text).structured_content["text"] == "HELLO 5"


def png(width: int, height: int) -> bytes:
    """A heading that announces a picture of that size, and nothing behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    heading = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", heading)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give one of the two"),
        ({"path": "desk.png", "image": "aGVsbG8="}, "give one of the two"),
        ({"path": "../README.md"}, "below a root"),
        ({"path": "/etc/passwd"}, "below a root"),
        ({"path": "https://localhost/a.png"}, "existing file"),
        ({"path": "none.png"}, "existing file"),
        ({"image": "not base64 at all!"}, "base64"),
        ({"image": "https://localhost/a.png"}, "address"),
        ({"image": "file:///etc/passwd"}, "address"),
        ({"image": ""}, "empty"),
        ({"image": "data:text/plain,hello"}, "data URL"),
        ({"image": base64.b64encode(b"hello").decode()}, "raster format"),
        ({"image": base64.b64encode(png(60_000, 60_000)).decode()}, "pixels"),
        ({"image": base64.b64encode(DESK.read_bytes()[:2000]).decode()}, "cannot be decoded"),
        ({"image": "A" * (20 << 20) + "AAAA"}, "characters of base64"),
        ({"path": "desk.png", "threshold": 1}, "threshold"),
        ({"path": "desk.png", "max_new_tokens": 100_000}, "max_new_tokens may be"),
        ({"path": "desk.png", "max_new_tokens": 0}, "max_new_tokens"),
        ({"path": 7}, "path"),
        ({"path": "x" * 5000}, "path"),
    ],
)
def test_what_is_wrong_is_a_sentence_in_the_result(
    service: Service, arguments: dict[str, Any], words: str
) -> None:
    result = called(service, "read", **arguments)
    assert result.is_error
    (text,) = result.content
    assert words in text.text
    assert len(text.text) < 1000
    assert "Traceback" not in text.text
    assert "\n" not in text.text


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("detect", {}, "labels"),
        ("detect", {"labels": []}, "at least one label"),
        ("detect", {"labels": ["a;b"]}, "must not hold ';'"),
        ("ask", {"prompt": "\x01"}, "U+0001"),
        ("caption", {"style": "long"}, "style"),
        ("caption", {"lang": "English"}, "language"),
        ("answer", {"question": " "}, "empty"),
    ],
)
def test_a_wrong_argument_is_named(
    service: Service, tool: str, arguments: dict[str, Any], words: str
) -> None:
    result = called(service, tool, path="desk.png", **arguments)
    assert result.is_error
    assert words in result.content[0].text


def test_a_fault_of_ours_is_no_traceback_for_the_agent(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Roots, "read", lambda *_: 1 / 0)
    result = called(service, "read", path="desk.png")
    assert result.is_error
    assert "division" not in result.content[0].text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_an_unknown_tool_is_an_error_of_the_protocol(service: Service, mode: str) -> None:
    with pytest.raises((MCPError, ExceptionGroup)) as caught:
        talk(service, lambda client: client.call_tool("fly", {}), mode=mode)
    error: Any = caught.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert "there is no tool 'fly'; use detect" in str(error)


def test_the_folders_that_a_client_declares_open_nothing(service: Service) -> None:
    from mcp_types import ListRootsResult, Root

    async def declared(_context: Any) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri="file:///")])

    result = talk(
        service,
        lambda client: client.call_tool("read", {"path": "/etc/hostname"}),
        list_roots_callback=declared,
        mode="legacy",
    )
    assert "below a root" in result.content[0].text


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_call_that_is_cancelled_stops_its_answer(
    tmp_path_factory: pytest.TempPathFactory, mode: str
) -> None:
    folder = write_random_tiny(tmp_path_factory.mktemp("models") / "endless")
    service = service_of(lambda: PaliGemma.from_pretrained(folder), max_new_tokens=4096)
    service.worker.start()

    async def asked(client: Client) -> float:
        arguments = {"path": "desk.png", "prompt": "caption en", "max_new_tokens": 4096}
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "ask", arguments)
            with anyio.fail_after(30):
                while not service.worker.load.running:
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        began = time.monotonic()
        with anyio.fail_after(30):
            while service.worker.load.running:
                await anyio.sleep(0.005)
        stopped_s = time.monotonic() - began
        # The next call is answered as if nothing had been.
        again = await client.call_tool("ask", {**arguments, "max_new_tokens": 3})
        assert not again.is_error
        return stopped_s

    try:
        assert talk(service, asked, mode=mode) < 1.0
    finally:
        service.close()


def test_calls_at_once_are_each_answered_as_alone(service: Service) -> None:
    prompts = ["ocr", "caption en", "detect star", "answer en what color is the star?"]

    async def all_at_once(client: Client) -> list[Any]:
        found: dict[str, Any] = {}

        async def one(prompt: str) -> None:
            result = await client.call_tool("ask", {"path": "desk.png", "prompt": prompt})
            found[prompt] = result.structured_content

        async with anyio.create_task_group() as group:
            for prompt in prompts:
                group.start_soon(one, prompt)
        return [found[prompt] for prompt in prompts]

    together = talk(service, all_at_once)
    alone = [
        called(service, "ask", path="desk.png", prompt=prompt).structured_content
        for prompt in prompts
    ]
    assert [one["text"] for one in together] == [one["text"] for one in alone]


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "paligemma", "mcp", "--model", "tiny", *words]


@contextlib.contextmanager
def started() -> Iterator[tuple[subprocess.Popen[str], Callable[..., None], TextIO]]:
    """The program with its session begun, what sends it messages or raw lines, and its output."""
    process = subprocess.Popen(
        program(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def send(*messages: dict[str, Any] | str) -> None:
        for message in messages:
            is_raw = isinstance(message, str)
            stdin.write(message if is_raw else json.dumps({"jsonrpc": "2.0", **message}))
            stdin.write("\n")
        stdin.flush()

    client = {"name": "test", "version": "1"}
    start = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
    try:
        send({"id": 1, "method": "initialize", "params": start})
        send({"method": "notifications/initialized"})
        assert json.loads(stdout.readline())["id"] == 1
        yield process, send, stdout
    finally:
        process.kill()
        with contextlib.suppress(BrokenPipeError):  # of what was not taken
            stdin.close()
        process.__exit__(None, None, None)


def test_standard_output_is_the_protocol_alone_and_a_signal_ends_it() -> None:
    tall = io.BytesIO()
    Image.new("L", (8, 8)).save(
        tall, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]
    )
    many_frames = base64.b64encode(tall.getvalue()).decode()  # read with a warning
    with started() as (process, send, stdout):
        arguments = {"image": many_frames}
        asked = {"name": "read", "arguments": arguments}
        send("no JSON", "", '{"jsonrpc": "2.0", "id": "\\ud800", "method": "ping"}')
        send({"id": 2, "method": "tools/call", "params": asked})
        seen = []
        while not any(one.get("id") == 2 for one in seen):
            seen.append(json.loads(stdout.readline()))
        assert all(one["jsonrpc"] == "2.0" for one in seen)
        assert seen[-1]["result"]["isError"] is False
        # What is no message is answered too; an empty line is none at all.
        refused = [one["error"] for one in seen if one["id"] is None]
        assert [one["code"] for one in refused] == [-32700, -32700]
        assert "a line of JSON-RPC" in refused[0]["message"]
        process.send_signal(signal.SIGTERM)  # while standard input stays open
        out, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert out == ""
    assert "2 frames" in err
    assert "Traceback" not in err


def test_a_signal_ends_it_where_nobody_reads_its_answers() -> None:
    with started() as (process, send, stdout):
        send(*({"id": number, "method": "tools/list"} for number in range(2, 60)))
        assert stdout.readline()
        time.sleep(0.5)  # the pipe is full
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


def test_it_ends_without_a_word_when_the_reader_of_its_answers_has_gone() -> None:
    with started() as (process, send, stdout):
        stdout.close()
        send(*({"id": number, "method": "ping"} for number in range(2, 5)))
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
