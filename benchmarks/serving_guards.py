"""What a server of the embedded model does with those who mean it no good, and how fast.

python benchmarks/serving_guards.py [--parts NAME,NAME]

The server is a process of its own, whose memory is read from /proc. See README.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import select
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import serving
from serving import PACKAGE, Server, ask, load, picture, quantile

PARTS = ("bombs", "bodies", "slow", "addresses", "leaving", "scrapes")
MIB = 1 << 20


class Peak:
    """The most memory of a process from now on, beside what it has now."""

    def __init__(self, server: Server) -> None:
        self._folder = Path(f"/proc/{server.pid}")
        (self._folder / "clear_refs").write_text("5")
        self._before_kib = self._kib("VmRSS")

    def _kib(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

    @property
    def grown_mb(self) -> float:
        return max(0, self._kib("VmHWM") - self._before_kib) / 1024


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, extra: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + head + extra + pixels + _chunk(b"IEND", b"")


def _changed(kind: str, at: bytes, skip: int, value: bytes) -> bytes:
    """A small picture with other bytes at a place behind a mark."""
    data = picture((16, 16), kind)
    place = data.index(at) + skip
    return data[:place] + value + data[place + len(value) :]


def _bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(100_000_000), 9)
    return {
        "PNG of 51 MP": _png(10_200, 5_000),
        "PNG of 10 GP": _png(100_000, 100_000),
        "JPEG of 4 GP": _changed("JPEG", b"\xff\xc0", 5, struct.pack(">HH", 65_500, 65_500)),
        "GIF of 4 GP": _changed("GIF", b"GIF", 6, struct.pack("<HH", 65_500, 65_500)),
        "BMP of 10 GP": _changed("BMP", b"BM", 18, struct.pack("<ii", 100_000, 100_000)),
        "PNG with 100 MB of text": _png(8, 8, _chunk(b"zTXt", b"k\0\0" + zeros)),
        "PDF of 22,500 MP": b"%PDF-1.4\n1 0 obj<</Type/Page/MediaBox[0 0 72000 72000]>>endobj",
        "zip of 100 MB": b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(20) + zeros,
    }


def bombs() -> None:
    """Pictures that announce, or grow to, more than is taken."""
    with serving.serving(*PACKAGE) as server:
        ask(server.connect(), "caption en", picture(), max_new_tokens=1)
        for name, data in _bombs().items():
            peak = Peak(server)
            found = [ask(server.connect(), "caption en", data) for _ in range(10)]
            assert {status for status, *_ in found} == {400}, (name, found)
            times_ms = [1e3 * took for *_, took in found]
            print(
                f"{name}: refused within {quantile(times_ms, 0.5):.1f} ms, at most "
                f"{max(times_ms):.1f}; memory + {peak.grown_mb:.1f} MB"
            )


def bodies() -> None:
    """Bodies without a stated length, against a bound of 20 MiB."""
    piece = b"%x\r\n" % MIB + b"a" * MIB + b"\r\n"
    with serving.serving(*PACKAGE) as server:
        for num_mib in (64, 1024):
            for waits in (True, False):
                peak, sent, before = Peak(server), 0, time.perf_counter()
                with socket.create_connection(("127.0.0.1", server.port), 30) as one:
                    one.sendall(_head("Transfer-Encoding: chunked"))
                    while sent < num_mib and not (waits and select.select([one], [], [], 0)[0]):
                        one.sendall(piece)
                        sent += 1
                    if sent == num_mib:
                        one.sendall(b"0\r\n\r\n")
                    answer = one.recv(1 << 16)
                took = time.perf_counter() - before
                assert answer.startswith(b"HTTP/1.1 413"), answer
                how = "stops at the answer" if waits else "reads nothing before it is done"
                print(
                    f"{num_mib} MiB, client {how}: 413 after {sent} MiB and {took:.2f} s; memory + "
                    f"{peak.grown_mb:.1f} MB"
                )


def _head(*lines: str) -> bytes:
    return "\r\n".join(["POST /v1/caption HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def slow() -> None:
    """A body of one byte a second."""
    with serving.serving(*PACKAGE) as server:
        before = time.perf_counter()
        with socket.create_connection(("127.0.0.1", server.port), 30) as one:
            one.sendall(_head("Content-Length: 1000"))
            while not select.select([one], [], [], 1)[0]:
                one.sendall(b" ")
            answer = one.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 408"), answer
        print(f"one byte a second: 408 after {time.perf_counter() - before:.1f} s")


def addresses() -> None:
    """Addresses in the place of pictures, where one host is allowed."""
    urls = ["http://127.0.0.1:1/", "http://[::ffff:127.0.0.1]/", "http://0x7f000001/"]
    urls += ["http://169.254.169.254/", "http://a@127.0.0.1/", "file:///etc/passwd", "gopher://x/"]
    urls += ["http://localhost/", "http://pictures.example@10.0.0.1/", "http://pictures.example./"]
    with serving.serving(*PACKAGE, "--allow-url", "localhost") as server:
        times_ms = []
        for _ in range(20):
            for url in urls:
                times_ms.append(_timed(server, {"image": url}, 400))
        print(
            f"{len(times_ms)} addresses: refused within p50 {quantile(times_ms, 0.5):.1f} ms, p99 "
            f"{quantile(times_ms, 0.99):.1f} ms, at most {max(times_ms):.1f} ms"
        )


def _timed(server: Server, body: dict[str, Any], status: int) -> float:
    """Milliseconds of a request that is answered so."""
    connection, before = server.connect(), time.perf_counter()
    kind = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/caption", json.dumps(body), kind)
    answer = connection.getresponse()
    answer.read()
    took = 1e3 * (time.perf_counter() - before)
    connection.close()
    assert answer.status == status, (body, answer.status)
    return took


def leaving() -> None:
    """From a client's leaving in the middle of an answer until its row is free."""
    with serving.serving(*PACKAGE) as server:
        free = server.gauge(r'kv_cache_free_tokens\{model="tiny"\}')
        asked = {"prompt": "caption en", "temperature": 10, "max_new_tokens": 1000, "stream": True}
        times_ms: list[float] = []
        for _ in range(50):
            connection = server.connect()
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/ask", json.dumps(asked), kind)
            answer = connection.getresponse()
            for _ in range(8):
                answer.readline()
            assert server.gauge(r'kv_cache_free_tokens\{model="tiny"\}') < free
            answer.close()
            _cut(connection)
            before = time.perf_counter()
            while server.gauge(r'kv_cache_free_tokens\{model="tiny"\}') != free:
                assert time.perf_counter() - before < 10
            times_ms.append(1e3 * (time.perf_counter() - before))
        print(
            f"{len(times_ms)} left: free within p50 {quantile(times_ms, 0.5):.0f} ms, at most "
            f"{max(times_ms):.0f} ms, a look at the metrics included"
        )


def _cut(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        connection.sock.close()
    connection.close()


def scrapes() -> None:
    """/metrics while eight clients ask."""
    with serving.serving(*PACKAGE) as server:
        done, times_ms = threading.Event(), list[float]()

        def scrape() -> None:
            connection = server.connect()
            while not done.wait(0.05):
                before = time.perf_counter()
                connection.request("GET", "/metrics")
                connection.getresponse().read()
                times_ms.append(1e3 * (time.perf_counter() - before))

        watching = threading.Thread(target=scrape)
        watching.start()
        load(server, 8, 400, lambda one: ask(one, "caption en", picture(), max_new_tokens=32))
        done.set()
        watching.join()
        print(
            f"{len(times_ms)} scrapes beside 400 requests of 8 clients: p50 "
            f"{quantile(times_ms, 0.5):.1f} ms, p99 {quantile(times_ms, 0.99):.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    args = parser.parse_args()
    print(f"$ python {' '.join(sys.argv)}\n{serving.machine()}")
    for part in args.parts.split(","):
        print(f"\n{part}", flush=True)
        run: Callable[[], None] = globals()[part]
        run()


if __name__ == "__main__":
    main()
