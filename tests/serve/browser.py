"""The page in Debian's Chromium: a server in a thread, whose answers a test can hold, and a tab."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("playwright", reason="needs playwright, of the extra dev")

import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.library import Library
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions

from .conftest import tiny

CHROMIUM = os.environ.get("PALIGEMMA_CHROMIUM") or shutil.which("chromium")
# What a browser itself reports of an answer that is an error; the page cannot prevent it.
REPORTED_BY_BROWSER = "Failed to load resource"


class Gate:
    """Holds streamed answers after some tokens, until it is opened."""

    def __init__(self) -> None:
        self.after: int | None = None

    def hold_after(self, num_tokens: int) -> None:
        self.after = num_tokens

    def open(self) -> None:
        self.after = None

    async def passed(self, num_tokens: int) -> None:
        while self.after is not None and num_tokens > self.after:
            await asyncio.sleep(0.005)


class Server:
    """A server of the embedded model under two names, at a free port.

    Args:
        library: of pages that it searches.

    Attributes:
        asked: path of each question with the number of bytes of its body.
    """

    def __init__(self, library: Library | None = None) -> None:
        options = ServerOptions()
        specs = [ModelSpec(name="tiny", load=tiny), ModelSpec(name="tiny-twin", load=tiny)]
        self.service = Service.of(Models(specs, options), options, library=library)
        self.gate = Gate()
        self.asked: list[tuple[str, int]] = []
        config = uvicorn.Config(self._app(create_app(self.service)), port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def forget_pictures(self) -> None:
        self.service.kept._kept.clear()

    def close(self) -> None:
        self.gate.open()
        self._server.should_exit = True
        self._thread.join(30)

    def _app(self, app: Any) -> Any:
        """The application with the gate before each token."""

        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            num_tokens, num_bytes = 0, 0

            async def counted() -> Any:
                nonlocal num_bytes
                message = await receive()
                num_bytes += len(message.get("body", b""))
                return message

            async def held(message: Any) -> None:
                nonlocal num_tokens
                if message.get("body", b"").startswith((b"event: token", b"event: done")):
                    num_tokens += 1
                    await self.gate.passed(num_tokens)
                await send(message)

            await app(scope, counted, held)
            if scope["method"] == "POST":
                self.asked.append((scope["path"], num_bytes))

        return wrapped


class Tab:
    """A page with what went wrong in it."""

    def __init__(self, context: BrowserContext, server: Server) -> None:
        self.page, self.server = context.new_page(), server
        self.faults: list[str] = []
        self.outside: list[str] = []
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and REPORTED_BY_BROWSER not in message.text:
            self.faults.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.server.url, "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, view: str = "ask") -> Page:
        self.page.goto(f"{self.server.url}#{view}")
        self.page.wait_for_selector("#model option", state="attached")
        return self.page

    def with_example(self, view: str = "ask") -> Page:
        page = self.open(view)
        page.click("#drop-examples [aria-label='Example: Desk']")
        page.wait_for_selector(".stage")
        return page

    def ask(self, task: str = "Detect", text: str | None = None) -> None:
        """Choose a task, fill its first field, and ask."""
        self.page.check(f"#composer .chip input[value={task.lower()}]")
        if text is not None:
            self.page.fill("#composer .task-fields .wide :is(input, textarea)", text)
        self.page.click("#composer button[type=submit]")

    def answered(self) -> None:
        self.page.wait_for_selector(".answer:not(.streaming) .status b")


def browser_fixture() -> Callable[[], Iterator[Browser]]:
    """One browser for a module; skips where there is none."""

    def browser() -> Iterator[Browser]:
        if CHROMIUM is None:
            pytest.skip("needs Chromium: apt install chromium, or name it in PALIGEMMA_CHROMIUM")
        with sync_playwright() as playwright:
            found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            yield found
            found.close()

    return browser


@contextlib.contextmanager
def tab_of(browser: Browser, server: Server, **options: Any) -> Iterator[Tab]:
    """A tab with its own storage, in which nothing may go wrong."""
    context = browser.new_context(reduced_motion="reduce", **options)
    try:
        tab = Tab(context, server)
        yield tab
        assert not tab.faults
        assert not tab.outside
    finally:
        server.gate.open()
        context.close()


def axe_source() -> str:
    """The source of axe-core, where `make test-web` has put it."""
    folder = Path(__file__).parents[2] / "build" / "web" / "node_modules" / "axe-core"
    path = folder / "axe.min.js"
    if not path.is_file():
        pytest.skip("needs axe-core, which make test-web gets with npm")
    return path.read_text(encoding="utf-8")
