"""A hub on this machine that serves one model, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" * 6 + "c0ff"

# Given the kind of request ("info", "tree", "head" or "body") and the file's name: a status, a
# body, or None to behave.
Fault = Callable[[str, str], "int | bytes | None"]


class FakeHub:
    """Serves the files of a folder as the model "owner/model"; a context manager.

    Attributes:
        fault: how it misbehaves.
        names: what it lists, by default the names of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.names = list(self.files)
        self.fault: Fault = lambda kind, name: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.serve(self, "body")

            def do_HEAD(self) -> None:
                hub.serve(self, "head")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: BaseHTTPRequestHandler, kind: str) -> None:
        path = request.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/"):
            kind = "tree" if "/tree/" in path else "info"
        wrong = self.fault(kind, name)
        if isinstance(wrong, int):
            self._send(request, wrong, b"no", {})
            return
        if kind == "info":
            body = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": []}).encode()
        elif kind == "tree":
            body = json.dumps([self._entry(name) for name in self.names]).encode()
        else:
            body = self.files.get(name, b"")
        headers = {"Content-Type": "application/json"}
        if kind in ("head", "body"):
            digest = hashlib.sha256(self.files.get(name, b"")).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
        length = len(body)
        if isinstance(wrong, bytes):
            body = wrong
            length = max(length, len(body)) if kind == "body" else len(body)
            if kind == "head":
                headers = {"Content-Type": "text/html"}
        self._send(request, 200, b"" if kind == "head" else body, headers, length)

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.files.get(name, b"")
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(data), "oid": "0" * 40, "lfs": lfs}

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str],
        length: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def hub_of(folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one folder in the place of the real one, with caches of its own."""
    with FakeHub(folder) as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(scratch / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(scratch / "notes"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's retries
        yield running
