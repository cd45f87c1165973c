"""Where a picture may come from: files, pipes, streams, addresses and URLs, each within bounds."""

from __future__ import annotations

import base64
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from paligemma.errors import ImageError
from paligemma.processing import image as image_module
from paligemma.processing.image import load_image

RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    return buffer.getvalue()


def test_streams_pipes_and_addresses_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(png())
    with path.open("rb") as file:
        assert np.array_equal(load_image(file), RGB)
    text = base64.b64encode(png()).decode()
    escaped = str(path).replace(" ", "%20")
    for source in (
        io.BytesIO(png()),
        f"data:image/png;base64,{text}",
        "DATA:image/png;base64," + text.replace("+", "-").replace("/", "_").rstrip("="),
        *os.scandir(os.fsencode(tmp_path)),
        RGB.view(np.ma.MaskedArray),
        text,
        "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        text.replace("+", "-").replace("/", "_").rstrip("="),
        f"file://{escaped}",
        f"file://localhost{escaped}",
    ):
        assert np.array_equal(load_image(source), RGB)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(png(),))
    writer.start()
    assert np.array_equal(load_image(pipe), RGB)
    writer.join()


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (base64.b64encode(b"GIF89a" + bytes(30_000)).decode(), "base64 of 40008 characters"),
        ("photos/" + "a" * 90, "there is no file photos/a"),
        ("/9j/" + "-" * 90 + ".jpg", "there is no file"),
        (b"%PDF-1.7", "it is a PDF, whose pages"),
        (b"<?xml version='1.0'?><svg/>", "it is an SVG drawing"),
        (b"\0\0\0\x1cftypheic" + bytes(64), r"it is HEIC, which needs .*paligemma\[heif\]"),
        (b"<!doctype html>", "it is a web page"),
        (io.BytesIO(), r"is at its end; seek\(0\) first"),
        ("x" * 5000 + ".png", r"5004 characters"),
        ("data:image/png;base64,!", "cannot be recognised"),
        ("data:image/png;base64,aaaaa", "must hold base64"),
        ("data:", "cannot be recognised"),
        ("", "got an empty name"),
        ("file:///nowhere/a.png", "must be an existing file"),
        (io.StringIO("text"), "open it rb"),
    ],
)
def test_what_holds_no_picture_is_named_in_one_short_sentence(source: object, rule: str) -> None:
    with pytest.raises(ImageError, match=rule) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_stream_may_give_a_part_at_a_time() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 7, 7))

    assert np.array_equal(load_image(Slow(png())), RGB)


def test_a_stream_that_fails_in_any_way_is_one_bad_picture() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise RuntimeError("x" * 600_000)

    with pytest.raises(ImageError, match="cannot be read: xxx") as caught:
        load_image(Broken())
    assert len(str(caught.value)) < 500


class Handler(BaseHTTPRequestHandler):
    last_path = ""

    def do_GET(self) -> None:
        Handler.last_path = self.path
        place = {"/moved": "/ok.png", "/loop": "/loop", "/file": "file:///etc/hostname"}
        if self.path in place:
            self.send_response(302)
            self.send_header("Location", place[self.path])
            self.end_headers()
            return
        if self.path == "/slow-heading":
            self.drip(b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 1000)
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        if self.path == "/slow-body":
            self.drip(bytes(1000))
        else:
            self.wfile.write(png())

    def drip(self, data: bytes) -> None:
        try:
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_url_is_fetched_only_when_asked(server: str) -> None:
    with pytest.raises(ImageError, match="allow_url=True"):
        load_image(f"{server}/ok.png")
    assert np.array_equal(load_image(f"{server}/ok.png", allow_url=True), RGB)
    assert np.array_equal(load_image(f"{server}/moved", allow_url=True), RGB)


def test_a_url_may_have_any_letters(server: str) -> None:
    load_image(f"{server}/grün es/%C3%A4%2Fb.png?w=ä b&x=1#part", allow_url=True)
    assert Handler.last_path == "/gr%C3%BCn%20es/%C3%A4%2Fb.png?w=%C3%A4%20b&x=1"
    with pytest.raises(ImageError, match="cannot be fetched"):
        load_image("http://\ud800\u3002/x", allow_url=True)


def test_a_url_that_fails_or_is_too_long_is_named(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, rule in (
        (f"{server}/none", "404"),
        (f"{server}/loop", "cannot be fetched"),
        (f"{server}/file", "cannot be fetched"),
        ("http://127.0.0.1:1/x", "cannot be fetched"),
        ("http://[broken", "cannot be fetched"),
    ):
        with pytest.raises(ImageError, match=rule):
            load_image(url, allow_url=True)
    monkeypatch.setattr(image_module, "MAX_ENCODED_BYTES", 20)
    with pytest.raises(ImageError, match="may have 20 bytes"):
        load_image(f"{server}/ok.png", allow_url=True)


@pytest.mark.parametrize("path", ["slow-body", "slow-heading"])
def test_a_url_that_drips_is_given_up_when_the_whole_time_is_over(
    server: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_module, "URL_TIMEOUT_S", 0.3)
    start = time.monotonic()
    with pytest.raises(ImageError, match="not complete after 0 s"):
        load_image(f"{server}/{path}", allow_url=True)
    assert time.monotonic() - start < 2


def test_heic_is_read_by_the_plugin_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image, ImageFile

    class Plugin(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (9, 6), "RGB"

        def load(self) -> object:
            self.im = Image.fromarray(RGB).im
            return None

    def register() -> None:
        Image.register_open("HEIF", Plugin, lambda start: start[4:8] == b"ftyp")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert np.array_equal(load_image(b"\0\0\0\x1cftypheic" + bytes(64)), RGB)


def test_a_matrix_is_read_as_any_array() -> None:
    grey = np.full((4, 5), 7, np.uint8)
    with pytest.warns(PendingDeprecationWarning):
        found = load_image(np.matrix(grey))
    assert np.array_equal(found, load_image(grey))
