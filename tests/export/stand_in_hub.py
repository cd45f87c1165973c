"""A hub on this machine that keeps what is pushed and gives it back, and misbehaves on request.

Speaks what huggingface_hub asks for: creating repositories, the two steps of an upload (large files
by LFS, then one commit), and downloads with ranges.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

WRITES, READS = "hf_writes", "hf_reads"
MAX_BODY = 64 << 20
_LARGE = 100_000

# (method, path) -> a status to answer with, or None to behave.
Fault = Callable[[str, str], "int | None"]


class StandInHub:
    """Repositories in memory; a context manager.

    Attributes:
        repositories: name -> path -> bytes.
        private: names of those that were made private.
        commits: of each repository, messages in order.
        objects: SHA-256 -> bytes of large files.
        uploads: SHA-256 of each body that was sent, in order.
        fault: how it misbehaves.
        said: its words then.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: dict[str, list[str]] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.fault: Fault = lambda method, path: None
        self.said = "no"
        self.cut_downloads_at: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 20

            def _serve(self) -> None:
                hub.serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandInHub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        body = _body(request)
        wrong = self.fault(request.command, path)
        if wrong is not None:
            return self._answer(request, {"error": self.said}, wrong)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if request.command in ("POST", "PUT") and "/lfs/" not in path:
            if token not in (WRITES, READS):
                return self._answer(request, {"error": "Invalid username or password."}, 401)
            if token == READS:
                return self._answer(request, {"error": "Forbidden"}, 403)
        if path == "/api/repos/create":
            return self._create(request, json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(request, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.objects[found[1]] = body
            self.uploads.append(found[1])
            return self._answer(request, {})
        found = re.fullmatch(
            r"(?:/api/models)?/([\w.-]+/[\w-]+(?:\.(?!git/)[\w-]+)*)(?:\.git)?(/.*)?", path
        )
        assert found, path
        name, rest = found[1], found[2] or ""
        files = self.repositories.get(name)
        if files is None:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return self._answer(request, {"error": "Repository not found"}, 404, headers)
        if rest.startswith("/preupload/"):
            return self._preupload(request, json.loads(body))
        if rest == "/info/lfs/objects/batch":
            return self._batch(request, json.loads(body))
        if rest.startswith("/commit/"):
            return self._commit(request, name, body)
        if rest.startswith("/tree/"):
            return self._answer(request, [_listed(key, data) for key, data in files.items()])
        if found := re.fullmatch(r"/resolve/[^/]+/(.+)", rest):
            return self._file(request, files[found[1]])
        siblings = [{"rfilename": key, **_listed(key, data)} for key, data in sorted(files.items())]
        return self._answer(
            request, {"id": name, "sha": self.commit_of(name), "siblings": siblings}
        )

    def commit_of(self, name: str) -> str:
        """Forty digits for the state of a repository."""
        return f"{len(self.commits[name]):040x}"

    def _create(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            told = {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            return self._answer(request, told, 409)
        self.repositories[name], self.commits[name] = {}, []
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(name)
        return self._answer(request, {"url": f"{self.url}/{name}"})

    def _preupload(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        rows = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["size"] > _LARGE else "regular",
                "shouldIgnore": False,
            }
            for one in asked["files"]
        ]
        self._answer(request, {"files": rows})

    def _batch(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        rows = []
        for one in asked["objects"]:
            row = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.objects:
                row["actions"] = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}
            rows.append(row)
        self._answer(request, {"transfer": "basic", "objects": rows})

    def _commit(self, request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        new, gone, message = {}, [], ""
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                message = value["summary"]
            elif row["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "deletedFile":
                gone.append(value["path"])
            else:
                assert row["key"] == "lfsFile"
                new[value["path"]] = self.objects[value["oid"]]
        for path in gone:
            del self.repositories[name][path]
        self.repositories[name] |= new
        self.commits[name].append(message)
        commit = self.commit_of(name)
        told = {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit}
        self._answer(request, {**told, "success": True})

    def _file(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        begin, status = 0, 200
        if found := re.match(r"bytes=(\d+)-", request.headers.get("Range", "")):
            begin, status = int(found[1]), 206
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": "0" * 40,
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
        }
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        sent = data[begin:]
        if self.cut_downloads_at is not None and request.command == "GET":
            sent = sent[: self.cut_downloads_at]
        if request.command == "HEAD":
            sent = b""
        self._send(request, status, sent, headers, len(data) - begin)

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        body: Any,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        sent = b"" if request.command == "HEAD" else data
        self._send(request, status, sent, headers, len(data))

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler,
        status: int,
        sent: bytes,
        headers: dict[str, str],
        length: int,
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(sent)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding") == "chunked":
        parts = []
        while size := int(request.rfile.readline(20), 16):
            assert size <= MAX_BODY
            parts.append(request.rfile.read(size))
            request.rfile.readline(4)
        request.rfile.readline(4)
        return b"".join(parts)
    length = int(request.headers.get("Content-Length") or 0)
    assert length <= MAX_BODY
    return request.rfile.read(length)


def _listed(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    row |= {"oid": oid, "blobId": oid}
    if len(data) > _LARGE:
        digest = hashlib.sha256(data).hexdigest()
        row["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
    return row


@contextmanager
def stand_in_hub(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub in the place of the real one, with caches of its own and a token that may write."""
    with StandInHub() as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(scratch / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(scratch / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Large files go by LFS; the service behind Xet has no stand-in.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITES)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's retries
        yield running
