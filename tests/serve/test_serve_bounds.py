"""Bodies are bounded in bytes, time and structure, and every answer has an id and safe headers."""

from __future__ import annotations

import json
import logging
import re
import resource
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paligemma.serve.app import create_app
from serve.conftest import serving
from serve.live import Live, answer_of, live
from serve.memory import Peak

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(create_app(serving(max_body_bytes=MIB, body_s=0.7))) as found:
        yield found


def head(**fields: object) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()


def error_of(answer: bytes) -> tuple[int, dict]:
    start, _, body = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)["error"]


def test_a_body_beyond_its_bound_is_refused_by_its_heading(server: Live) -> None:
    status, error = error_of(server.send(head(Content_Length=1 << 30)[:-2] + b"\r\nabc"))
    assert (status, error["code"]) == (413, "body_too_large")
    assert "1048576 bytes" in error["message"]


def test_a_chunked_body_is_refused_when_it_passes_the_bound_and_is_not_kept(server: Live) -> None:
    def most_kb() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    piece = b"%x\r\n" % MIB + b"a" * MIB + b"\r\n"
    before = most_kb()
    with server.connect() as one:
        one.sendall(head(Transfer_Encoding="chunked"))
        for _ in range(64):
            one.sendall(piece)
        one.sendall(b"0\r\n\r\n")
        status, error = error_of(answer_of(one))
    assert (status, error["code"]) == (413, "body_too_large")
    assert most_kb() - before < 9 * 1024


@pytest.mark.parametrize("num_mib", [64, 1024])
def test_a_body_without_a_stated_length_takes_the_memory_of_its_bound_alone(
    num_mib: int,
) -> None:
    service = serving(max_body_bytes=20 * MIB)
    piece = b"%x\r\n" % MIB + b"a" * MIB + b"\r\n"
    sent = 0

    with live(create_app(service)) as server, server.connect() as one:
        one.sendall(head(Transfer_Encoding="chunked"))
        peak = Peak()
        # As curl does, it stops where an answer comes.
        while sent < num_mib and not select.select([one], [], [], 0)[0]:
            one.sendall(piece)
            sent += 1
        status, error = error_of(answer_of(one))
    print(f"{sent} of {num_mib} MiB sent, grown by {peak.grown_mb:.1f} MB")
    assert (status, error["code"]) == (413, "body_too_large")
    assert sent > 20
    assert peak.grown_mb <= 20 + 8


def test_a_body_that_dribbles_is_dropped_in_time(server: Live) -> None:
    start = time.monotonic()
    with server.connect() as one:
        one.sendall(head(Content_Length=1000))
        one.settimeout(0.1)
        answer = b""
        while time.monotonic() - start < 5:
            try:
                piece = one.recv(1 << 16)
                if not piece:
                    break
                answer += piece
            except TimeoutError:
                one.sendall(b" ")
        took = time.monotonic() - start
    status, error = error_of(answer)
    assert (status, error["code"]) == (408, "timeout")
    assert 0.6 < took < 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 100 + b"]" * 100, "nested"),
        (b'{"json_schema":' + b'{"a":' * 500 + b"1" + b"}" * 501, "nested"),
        (b"[" + b"[]," * 100_000 + b"[]]", "outside its strings"),
        (b"[" * 300_000, "outside its strings"),
        (b"\xff\xfe{\x00}\x00", "utf-8"),
        (b'{"image": "\\ud800"}', "must be JSON"),
        (b'{"temperature": NaN}', "must be JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "must be JSON"),
        (b"", "must be JSON"),
        (b'"a', "must be JSON"),
        (b"[]", "the body must be an object, got a list of 0"),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("route", ["caption", "chat/completions"])
def test_json_that_is_none_or_too_much_is_refused(
    client: TestClient, route: str, body: bytes, words: str
) -> None:
    answer = client.post(f"/v1/{route}", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


PART = b'--x\r\nContent-Disposition: form-data; name="lang"\r\n\r\nv\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nv\r\n'


# Starlette leaves the file of a part without an end to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_forms_are_bounded_in_parts_and_headers(client: TestClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n%b\r\nv\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    bodies = [
        b"".join(part % (k, b"") for k in range(100)),
        part % (0, b"".join(b"X-%d: y\r\n" % k for k in range(100))),
        part % (0, b"X: " + b"y" * 100_000 + b"\r\n"),
        part.replace(b"; name", b"; nome") % (0, b""),
        b"--y\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        b"data without an end",
    ]
    for number, body in enumerate(bodies):
        end = b"" if number == 5 else b"--x--\r\n"
        answer = client.post("/v1/caption", content=body + end, headers=kind)
        assert answer.status_code == 400, number
        assert answer.json()["error"]["message"], number


@pytest.mark.parametrize(
    ("body", "boundary", "said"),
    [
        (PART * 65, "x", "a form may have 64 fields"),
        (FILE * 17, "x", "a form may have 16 files"),
        (PART.replace(b"; name", b"; nome"), "x", "every part of a form needs a name"),
        (PART, None, "the Content-Type of a form states its boundary"),
        (PART, "other", "the body must be a form as multipart/form-data says"),
        (PART.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"), "x", "be a form"),
    ],
    ids=range(6),
)
def test_the_bound_of_a_form_is_said_in_a_sentence_of_ours(
    client: TestClient, body: bytes, boundary: str | None, said: str
) -> None:
    kind = "multipart/form-data" + (f"; boundary={boundary}" if boundary else "")
    answer = client.post("/v1/caption", content=body + b"--x--\r\n", headers={"Content-Type": kind})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert said in error["message"]
    assert error["code"] == "invalid_request"


@pytest.mark.parametrize("path", ["/", "/static/index.html", "/docs"])
@pytest.mark.parametrize(
    "given", ["bytes=0-1", "bytes=5-1", "bytes=999999999-", "x", "bytes=0-0,2-2"]
)
def test_a_range_is_passed_over(client: TestClient, path: str, given: str) -> None:
    whole = client.get(path)
    answer = client.get(path, headers={"Range": given})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert answer.headers.get("accept-ranges", "none") == "none"


ANSWERS = [
    ("GET", "/health", 200),
    ("GET", "/ready", 200),
    ("GET", "/v1/models", 200),
    ("GET", "/v1/models/other", 404),
    ("GET", "/nowhere", 404),
    ("GET", "/v1/caption", 405),
    ("POST", "/v1/caption", 400),
    ("POST", "/v1/chat/completions", 400),
    ("DELETE", "/health", 405),
]


def test_a_wrong_address_or_method_is_told_in_a_sentence(client: TestClient) -> None:
    error = client.get("/v1/detectt").json()["error"]
    assert error["message"] == "there is nothing at '/v1/detectt'; /docs says what is where"
    assert error["code"] == "not_found"
    answer = client.delete("/health")
    assert answer.json()["error"]["message"] == "'/health' takes GET, got DELETE"
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_has_an_id_and_safe_headers(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path, headers={"X-Request-Id": "my-id:1"})
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == "my-id:1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]
    if status >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, 'a"b', "<loc>", "é"])
def test_an_id_is_made_where_none_came_that_is_harmless(
    client: TestClient, given: str | None
) -> None:
    headers = {} if given is None else {"X-Request-Id": given.encode()}
    answer = client.get("/health", headers=headers)
    assert re.fullmatch(r"req-[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_stream_has_an_id(client: TestClient, desk: str) -> None:
    asked = {"image": desk, "stream": True}
    answer = client.post("/v1/caption", json=asked, headers={"X-Request-Id": "s1"})
    assert answer.headers["x-request-id"] == "s1"
    assert "event: done" in answer.text


def test_an_error_of_ours_nobody_foresaw_is_a_sentence_with_an_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("paligemma.serve.native.read_json", fails)
    answer = client.post("/v1/caption", content=b"{}", headers={"X-Request-Id": "e1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "e1"
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "request e1 failed" in caplog.text


def test_hosts_and_origins_of_others_are_refused(tmp_path: Path) -> None:
    app = create_app(serving(allowed_hosts=("localhost", "127.0.0.1", "::1", "cards.example")))
    client = TestClient(app, base_url="http://localhost:8000")
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "cards.example"):
        assert client.get("/health", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[::1", "a b"):
        answer = client.get("/health", headers={"Host": host})
        assert answer.status_code == 403, host
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert f"not as {host!r};" in answer.json()["error"]["message"]
    assert client.get("/health", headers={"Origin": "http://localhost:8000"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        assert client.post("/v1/caption", headers={"Origin": origin}).status_code == 403, origin


def test_what_is_not_http_and_headings_that_do_not_end_are_answered_and_closed() -> None:
    service = serving(body_s=0.3)
    with live(create_app(service), bounds=service.options) as server:
        for data in (b"\x16\x03\x01\x02\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"G" * (1 << 17)):
            status, error = error_of(server.send(data))
            assert (status, error["type"]) == (400, "invalid_request_error")
        start = time.monotonic()
        with server.connect() as one:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ")
            assert one.recv(100) == b""
        assert time.monotonic() - start < 2


ASKED = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"


def test_who_does_not_take_his_answers_loses_his_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = serving(send_s=0.4)
    with live(create_app(service), bounds=service.options) as server, reader(server) as one:
        one.sendall(ASKED * 60)
        time.sleep(0.2)
        assert server.connections
        end = time.monotonic() + 20
        while server.connections and time.monotonic() < end:
            time.sleep(0.05)
        assert not server.connections
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_who_takes_them_slowly_gets_them_all() -> None:
    service = serving(send_s=0.4)
    with (
        live(create_app(service), bounds=service.options) as server,
        reader(server, 1 << 16) as one,
    ):
        one.sendall(ASKED * 25)
        found = b""
        while found.count(b"HTTP/1.1 200") < 25:
            piece = one.recv(1 << 16)
            assert piece
            found += piece
            time.sleep(0.05)


def reader(server: Live, num_bytes: int = 1) -> socket.socket:
    """A connection with little room for what it does not take."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, num_bytes)
    found.settimeout(10)
    found.connect(("127.0.0.1", server.port))
    return found
