"""The page of a review on this machine: what it shows, and the decisions that it sends.

Only this machine is served, and only a page that this program sent may decide: the host must be a
local one, a decision comes as JSON, which no page of another origin may send, and none may frame
this one.
"""

from __future__ import annotations

import io
import json
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from paligemma.errors import PaliGemmaError
from paligemma.json_file import parse_json
from paligemma.review.choice import confidence
from paligemma.review.decisions import Reviewed

PAGE = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/review.js": "review.js", "/review.css": "review.css"}
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_ROW = re.compile(r"/(rows|pictures|decisions)/(\d{1,15})")
_MAX_BODY = 1 << 20
_SHOWN_PX, _LEAST_PX = 1600, 640


class ReviewServer(ThreadingHTTPServer):
    """Serves one review at 127.0.0.1.

    Args:
        reviewed: folder and rows of the review.
        port: 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, reviewed: Reviewed, port: int = 0) -> None:
        self.reviewed, self.lock = reviewed, Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that left before its answer was there is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = 30

    def do_GET(self) -> None:
        if not self._is_local():
            return
        name = _FILES.get(self.path)
        if name is not None:
            path = PAGE / name
            self._send(path.read_bytes(), f"{_KINDS[path.suffix]}; charset=utf-8")
        elif self.path == "/favicon.ico":  # Browsers ask for one unasked.
            self._send(b"", "image/x-icon", HTTPStatus.NO_CONTENT)
        elif self.path == "/rows":
            self._send_json(self._rows())
        elif (found := _ROW.fullmatch(self.path)) is not None and found[1] != "decisions":
            self._row(found[1], int(found[2]))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        if not self._is_local():
            return
        found = _ROW.fullmatch(self.path)
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        length = self.headers.get("Content-Length", "")
        if found is None or found[1] != "decisions":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif kind != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a decision is sent as JSON")
        elif not length.isdecimal() or int(length) > _MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_BODY} bytes")
        else:
            try:
                decision = parse_json(self.rfile.read(int(length)))
                with self.server.lock:
                    kept = self.server.reviewed.decide(int(found[2]), decision)
                self._send_json({"kept": kept, "counts": self._counts()})
            except (ValueError, PaliGemmaError) as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _is_local(self) -> bool:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host in ("127.0.0.1", "localhost"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "a review is open at 127.0.0.1 alone")
        return False

    def _counts(self) -> dict[str, int]:
        return dict(self.server.reviewed.counts())

    def _rows(self) -> Any:
        reviewed = self.server.reviewed
        rows = [
            {
                "row": row,
                "confidence": round(confidence(reviewed.records[row]), 4),
                "state": reviewed.decisions.get(row, {}).get("state", "open"),
            }
            for row in reviewed.order
        ]
        return {"rows": rows, "counts": self._counts()}

    def _row(self, what: str, row: int) -> None:
        record = self.server.reviewed.records.get(row)
        if record is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"row {row} is not among those that are looked at")
        elif what == "rows":
            decision = self.server.reviewed.decisions.get(row)
            self._send_json({"record": record, "decision": decision})
        else:
            try:
                with self.server.lock:  # One reader of parts at a time.
                    picture = Image.fromarray(self.server.reviewed.picture(row))
            except PaliGemmaError as error:
                self._refuse(HTTPStatus.NOT_FOUND, str(error))
                return
            picture.thumbnail((_SHOWN_PX, _SHOWN_PX))
            scale = _LEAST_PX / max(picture.size)
            if scale > 1:  # Boxes on a stamp are hard to see.
                width, height = (max(1, round(side * scale)) for side in picture.size)
                picture = picture.resize((width, height))
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=90)
            self._send(file.getvalue(), "image/jpeg")

    def _send_json(self, body: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(body).encode(), "application/json", status)

    def _refuse(self, status: HTTPStatus, said: str) -> None:
        self.close_connection = True
        self._send_json({"error": said}, status)

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *words: Any) -> None:
        """Nothing: a page asks often."""
