"""Pictures are bounded before they are decoded, and lie as their orientation says."""

from __future__ import annotations

import io
import json
import logging
import resource
import struct
import time
import zlib

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from paligemma.serve.app import create_app
from serve.conftest import DESK, serving


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def _saved(kind: str) -> bytearray:
    memory = io.BytesIO()
    Image.new("RGB", (16, 8)).save(memory, kind, lossless=True)
    return bytearray(memory.getvalue())


def _jpeg(width: int, height: int) -> bytes:
    data = _saved("JPEG")
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _gif(width: int, height: int) -> bytes:
    data = _saved("GIF")
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def _webp(width: int, height: int) -> bytes:
    data = _saved("WEBP")
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


def _tiff(width: int, height: int) -> bytes:
    data = _saved("TIFF")
    for tag, value in ((256, width), (257, height)):
        at = data.index(struct.pack("<H", tag), 8)
        data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(data)


BOMBS = {
    "png 51 MP": _png(10_200, 5_000),
    "png 10 GP": _png(100_000, 100_000),
    "jpeg 4 GP": _jpeg(65_500, 65_500),
    "gif 4 GP": _gif(65_500, 65_500),
    "webp 268 MP": _webp(16_383, 16_383),
    "tiff 51 MP": _tiff(10_200, 5_000),
    "tiff 10 GP": _tiff(100_000, 100_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_announces_too_many_pixels_is_refused_undecoded(
    client: TestClient, name: str
) -> None:
    bound = Image.MAX_IMAGE_PIXELS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    answer = client.post("/v1/caption", files={"image": BOMBS[name]})
    took_ms = (time.perf_counter() - start) * 1000
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{name}: {took_ms:.0f} ms, {grown_mb:.0f} MB")
    assert answer.status_code == 400
    assert "pixels" in answer.json()["error"]["message"]
    assert took_ms < 2000  # 100 ms where nothing else computes
    assert grown_mb <= 64
    assert bound == Image.MAX_IMAGE_PIXELS


def test_all_orientations_give_the_upright_picture(client: TestClient) -> None:
    turns = (2, 3, 4, 5, 6, 7, 8)
    undone = (
        *(Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180),
        *(Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90),
        *(Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270),
    )
    with Image.open(DESK) as opened:
        upright = opened.convert("RGB")
    expected = None
    for number, turn in ((1, None), *zip(turns, undone, strict=True)):
        exif = Image.Exif()
        exif[0x0112] = number
        memory = io.BytesIO()
        (upright if turn is None else upright.transpose(turn)).save(memory, "PNG", exif=exif)
        files = {"image": memory.getvalue()}
        body = client.post("/v1/detect", files=files, data={"labels": "star"}).json()
        assert (body["image"]["width"], body["image"]["height"]) == upright.size
        expected = expected or body["detections"]
        assert body["detections"] == expected, number
    assert expected


def test_a_prompt_of_too_many_tokens_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/ask", json={"prompt": "caption en " + "x" * 5000})
    assert answer.status_code == 400
    assert "1024 tokens" in answer.json()["error"]["message"]


def test_the_log_has_one_line_a_request_and_the_metrics_count_each(
    desk: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "paligemma.serve.requests")
    with TestClient(create_app(serving())) as fresh:
        sent = [
            fresh.post("/v1/caption", json={"image": desk}, headers={"X-Request-Id": "one"}),
            fresh.post("/v1/ask", json={"image": desk, "prompt": "caption en", "stream": True}),
            fresh.post("/v1/caption", content=b"{"),
            fresh.get("/nowhere/%22%0A%1b[2J"),
            fresh.get("/health"),
        ]
        families = {
            one.name: one for one in text_string_to_metric_families(fresh.get("/metrics").text)
        }
    lines = [
        json.loads(record.getMessage())
        for record in caplog.records
        if record.name == "paligemma.serve.requests"
    ]
    assert [line["code"] for line in lines] == [one.status_code for one in [*sent, sent[0]]]
    usage = sent[0].json()["usage"]
    assert lines[0]["request_id"] == "one"
    assert lines[0]["model"] == "tiny"
    assert lines[0]["prompt_tokens"] == usage["prompt_tokens"]
    assert lines[0]["completion_tokens"] == usage["completion_tokens"] > 0
    assert lines[0]["queue_ms"] >= 0
    assert lines[3]["route"] == "other"
    counts = [
        one.value for one in families["paligemma_requests"].samples if one.name.endswith("_total")
    ]
    assert sum(counts) == len(sent)
    for name in (
        "time_to_first_token",
        "time_per_output_token",
        "request",
        "queue",
        "image_decode",
    ):
        samples = families[f"paligemma_{name}_seconds"].samples
        assert next(one.value for one in samples if one.name.endswith("_count")) == 2, name
