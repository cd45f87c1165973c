"""Code moves from a model in this process to one on a server by one line."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paligemma import Client, Detections, Frames, PaliGemma, TextAnswer
from paligemma.errors import (
    AccessError,
    ConfigError,
    DataError,
    ImageError,
    ModelNotFoundError,
    PromptError,
    RunError,
)

pytest.importorskip("fastapi", reason="needs the extra serve")

from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from tests.serve.live import live

DESK = Path(__file__).parents[2] / "examples" / "desk.png"
with Image.open(DESK) as opened:
    PIXELS = opened.convert("RGB")
Ask = Callable[[Any], TextAnswer | Detections]


@pytest.fixture(scope="module")
def local() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny", kv_cache_dtype="float32")


@pytest.fixture(scope="module")
def service(local: PaliGemma) -> Service:
    options = ServerOptions()
    models = Models([ModelSpec(name="tiny", load=lambda: local)], options)
    return Service.of(models, options)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with live(create_app(service)) as server:
        yield server.url


@pytest.fixture(scope="module")
def remote(url: str) -> Iterator[Client]:
    with Client(url) as found:
        yield found


def assert_same(mine: TextAnswer | Detections, theirs: TextAnswer | Detections) -> None:
    assert type(mine) is type(theirs)
    if isinstance(mine, TextAnswer) and isinstance(theirs, TextAnswer):
        assert mine.text == theirs.text
        assert (mine.score or 0) == pytest.approx(theirs.score or 0, rel=1e-3)
        assert mine.token_logprobs == pytest.approx(theirs.token_logprobs, abs=1e-4)
    if isinstance(mine, Detections) and isinstance(theirs, Detections):
        assert (mine.text, mine.rest, mine.image_wh) == (theirs.text, theirs.rest, theirs.image_wh)
        assert mine.asked_labels == theirs.asked_labels
        assert mine.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(mine.xyxy, theirs.xyxy, atol=1e-3)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-4)
        for one, other in zip(mine, theirs, strict=True):
            assert (one.region is None) == (other.region is None)
            if one.mask is not None and other.mask is not None:
                np.testing.assert_array_equal(one.mask, other.mask)


QUESTIONS: dict[str, Ask] = {
    "detect": lambda model: model.detect(DESK, ["star", "digit"]),
    "detect with options": lambda model: model.detect(
        DESK, "star", constrain=True, max_objects=2, threshold=0.1, max_overlap=0.5
    ),
    "segment": lambda model: model.segment(DESK, "star"),
    "caption": lambda model: model.caption(DESK),
    "caption of a box": lambda model: model.caption(DESK, box_yxyx=(0.1, 0.1, 0.6, 0.7)),
    "caption in German": lambda model: model.caption(DESK, lang="de", max_new_tokens=20),
    "answer": lambda model: model.answer(DESK, "what color is the star?"),
    "answer among choices": lambda model: model.answer(DESK, "how many stars?", choices=range(4)),
    "read": lambda model: model.read(DESK),
    "ask": lambda model: model.ask(DESK, "detect star ; segment digit"),
    "ask in words": lambda model: model.ask(DESK, "caption en"),
    "ask without a picture": lambda model: model.ask(None, "caption en"),
    "generate": lambda model: model.generate(DESK, "detect star"),
    "generate by a draw": lambda model: model.generate(
        DESK, "caption en", temperature=1.5, seed=np.int64(7), max_new_tokens=8
    ),
    "generate by beams": lambda model: model.generate(
        DESK, "caption en", num_beams=2, max_new_tokens=8
    ),
    "stream": lambda model: TextAnswer(text="".join(model.stream(DESK, "detect star"))),
    "stream of a draw": lambda model: TextAnswer(
        text="".join(model.stream(DESK, "caption en", temperature=1.2, seed=3, max_new_tokens=6))
    ),
    "best of several draws": lambda model: model.generate(
        DESK, "caption en", temperature=1.2, best_of=3, max_new_tokens=6
    ),
    "beams with a penalty": lambda model: model.generate(
        DESK, "caption en", num_beams=2, length_penalty=0.5, max_new_tokens=6
    ),
    "a tensor": lambda model: model.detect(
        model.encode_image(torch.from_numpy(np.array(PIXELS)).permute(2, 0, 1)), "star"
    ),
    "axes that are stated": lambda model: model.detect(
        model.encode_image(np.asarray(PIXELS).transpose(2, 0, 1), layout="CHW"), "star"
    ),
    "a frame of a file": lambda model: model.caption(model.encode_image(DESK, frames=0)),
    "all frames of a file": lambda model: model.caption(
        model.encode_image(DESK, frames="all"), max_new_tokens=6
    ),
    "tiles": lambda model: model.detect(DESK, "star", tile="2x1", max_new_tokens=12),
    "encode_image": lambda model: model.encode_image(DESK).ask("detect star"),
    "frames": lambda model: model.caption(Frames(DESK, DESK)),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_every_method_answers_as_in_this_process(
    remote: Client, local: PaliGemma, ask: Ask
) -> None:
    assert_same(ask(remote), ask(local))


@pytest.mark.parametrize(
    "picture",
    [
        str(DESK),
        DESK.read_bytes(),
        PIXELS,
        np.asarray(PIXELS.convert("L")),
        np.asarray(PIXELS, np.float32) / 255,
    ],
    ids=["path", "bytes", "Pillow", "grey", "float"],
)
def test_pictures_come_in_every_form(remote: Client, local: PaliGemma, picture: Any) -> None:
    assert_same(remote.detect(picture, "star"), local.detect(picture, "star"))


def test_what_was_found_is_drawn_exported_and_saved(remote: Client, tmp_path: Path) -> None:
    found = remote.segment(DESK, "star")
    assert found[0].region is not None
    found.save_png(tmp_path / "desk.png")
    with Image.open(tmp_path / "desk.png") as drawn:
        assert drawn.width == 640
    record = found.to_coco()[0]
    assert record["segmentation"]["size"] == [480, 640]
    assert record["category_id"] == 1


def test_a_picture_that_the_server_forgot_is_sent_again(remote: Client, service: Service) -> None:
    image = remote.encode_image(DESK)
    first = remote.caption(image)
    assert image.image_id is not None
    service.kept._kept.clear()
    service.kept._num_bytes = 0
    assert remote.caption(image).text == first.text
    service.kept._kept.clear()
    service.kept._num_bytes = 0
    assert "".join(remote.stream(image, "caption en")) == first.text


def test_a_stream_that_is_left_ends(remote: Client) -> None:
    pieces = remote.stream(DESK, "caption en")
    next(pieces)
    pieces.close()
    assert remote.caption(DESK).text


def test_an_answer_that_was_cut_is_warned_of(
    remote: Client, caplog: pytest.LogCaptureFixture
) -> None:
    remote.caption(DESK, max_new_tokens=2)
    assert "max_new_tokens" in caplog.text


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda model: model.caption(DESK.with_name("missing.png")), ImageError),
        (lambda model: model.caption(b"no picture"), ImageError),
        (lambda model: model.caption("https://example.com/a.png"), ImageError),
        (lambda model: model.detect(None, "star"), ImageError),
        (lambda model: model.detect(DESK, []), PromptError),
        (lambda model: model.ask(DESK, ""), PromptError),
        (lambda model: model.ask(DESK, "x" * 19_000), PromptError),
        (lambda model: model.caption(DESK, box_yxyx=(0.5, 0.5, 0.1, 0.1)), DataError),
        (lambda model: model.caption(DESK, temprature=1.0), ConfigError),
        (lambda model: model.caption(DESK, temperature=-1.0), ConfigError),
        (lambda model: model.caption(DESK, temperature=float("nan")), ConfigError),
        (lambda model: model.caption(DESK, max_new_tokens=0), ConfigError),
        (lambda model: model.caption(DESK, adapter="cards"), ConfigError),
    ],
)
def test_errors_are_those_of_a_model_in_this_process(
    remote: Client, local: PaliGemma, ask: Ask, kind: type[Exception]
) -> None:
    for model in (remote, local):
        with pytest.raises(kind):
            ask(model)


def test_an_unknown_model_is_named(url: str) -> None:
    with (
        Client(url, model="tinny") as client,
        pytest.raises(ModelNotFoundError, match="did you mean tiny"),
    ):
        client.caption(DESK)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "http://a:x"])
def test_an_address_must_be_one_of_http(url: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Client(url)


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(RunError, match="does not answer"):
        Client("http://127.0.0.1:1", timeout_s=2).caption(DESK)


class Scripted(BaseHTTPRequestHandler):
    """Answers from a list of statuses, headers and bodies."""

    protocol_version = "HTTP/1.1"
    script: list[tuple[int, dict[str, str], bytes]]
    asked: list[Any]
    ports: set[int]

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.ports.add(self.client_address[1])
        status, headers, body = self.script.pop(0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[tuple[Client, type[Scripted]]]:
    kind = type("Script", (Scripted,), {"script": [], "asked": [], "ports": set()})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with Client(f"http://127.0.0.1:{server.server_port}", timeout_s=5, num_retries=2) as client:
        yield client, kind
    server.shutdown()
    server.server_close()
    thread.join()


def refused(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    error = {"message": "a sentence", "type": "t", "param": None, "code": code}
    return status, {"Retry-After": "0"}, json.dumps({"error": error}).encode()


ANSWER = {
    "image": None,
    "text": "hello",
    "score": 0.5,
    "tokens": [{"id": 1, "text": "hello", "logprob": -0.5}],
    "finish_reason": "stop",
}


def test_a_server_without_room_is_asked_again_over_one_connection(
    scripted: tuple[Client, type[Scripted]],
) -> None:
    client, kind = scripted
    body = json.dumps(ANSWER).encode()
    kind.script += [refused(429, "overloaded"), refused(503, "overloaded"), (200, {}, body)]
    kind.script += [(200, {}, body)]
    assert client.ask(None, "hi").text == "hello"
    assert client.ask(None, "hi").text == "hello"
    assert len(kind.asked) == 4
    assert len(kind.ports) == 1
    kind.script += [refused(429, "overloaded")] * 3
    with pytest.raises(RunError, match="a sentence"):
        client.ask(None, "hi")
    assert kind.script == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refused(401, "invalid_api_key"), AccessError),
        (refused(413, "too_large"), ImageError),
        (refused(500, "server_error"), RunError),
        (refused(400, "invalid_request"), ConfigError),
        ((302, {"Location": "http://example.com"}, b""), RunError),
        ((502, {}, b"<html>bad gateway"), RunError),
        ((200, {}, b"<html>hello"), RunError),
        ((200, {}, b"{}"), RunError),
        ((200, {}, b"[]"), RunError),
        ((200, {}, b'{"finish_reason": "stop", "image": 5, "tokens": 7}'), RunError),
    ],
)
def test_whatever_a_server_answers_is_an_error_of_ours(
    scripted: tuple[Client, type[Scripted]], answer: Any, expected: type[Exception]
) -> None:
    client, kind = scripted
    kind.script.append(answer)
    with pytest.raises(expected):
        client.ask(None, "hi")


def test_the_client_needs_neither_torch_nor_a_server_library() -> None:
    code = (
        "import sys; from paligemma import Client; Client('http://localhost').encode_image(sys.argv[1])"
        "; print({'torch', 'fastapi', 'httpx', 'sentencepiece'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(DESK)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_list_of_pictures_is_a_batch_on_a_server_too(remote: Client, local: PaliGemma) -> None:
    pictures = [DESK, np.zeros((30, 40, 3), np.uint8)]
    for mine, theirs in zip(
        remote.detect(pictures, "star", max_tokens=12),  # type: ignore[call-overload]
        local.detect(pictures, "star", max_new_tokens=12),
        strict=True,
    ):
        assert_same(mine, theirs)
    ((path, found),) = remote.detect_many([str(DESK), "none.png"], "star", max_new_tokens=12)
    assert path == str(DESK)
    assert_same(found, local.detect(DESK, "star", max_new_tokens=12))
    with pytest.raises(ImageError, match="the frames of one example are named as such"):
        remote.encode_image([DESK, DESK])  # type: ignore[arg-type]
