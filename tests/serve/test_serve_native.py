"""The routes of tasks answer as the façade does."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paligemma import PaliGemma
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from tests.serve.live import live

DESK = Path(__file__).parents[2] / "examples" / "desk.png"


def events(text: str) -> list[tuple[str, dict]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_an_upload_is_detected_as_by_the_facade(client: TestClient, local: PaliGemma) -> None:
    files = {"image": DESK.read_bytes()}
    answer = client.post("/v1/detect", files=files, data={"labels": ["star", "digit"]})
    assert answer.status_code == 200, answer.text
    expected = local.detect(DESK, ["star", "digit"]).to_json()
    body = answer.json()
    assert len(body["detections"]) == len(expected["detections"]) > 0
    assert body["text"] == expected["text"]
    for mine, theirs in zip(body["detections"], expected["detections"], strict=True):
        assert mine["box_xyxy_px"] == theirs["box_xyxy_px"]
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
    assert body["image"] == {"id": body["image"]["id"], "width": 640, "height": 480}
    assert body["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("caption", {}),
        ("answer", {"question": "what color is the star?"}),
        ("read", {}),
        ("ask", {"prompt": "caption en"}),
    ],
)
def test_words_are_those_of_the_facade(
    client: TestClient, local: PaliGemma, desk: str, task: str, fields: dict[str, str]
) -> None:
    body = client.post(f"/v1/{task}", json={"image": desk, "tokens": True, **fields}).json()
    method = getattr(local, task)
    expected = method(DESK, *fields.values())
    assert body["text"] == expected.text
    assert "".join(token["text"] for token in body["tokens"]) == expected.text
    assert sum(token["logprob"] for token in body["tokens"]) == pytest.approx(
        sum(expected.token_logprobs), abs=1e-4
    )


def test_masks_polygons_and_an_overlay_come_when_asked(client: TestClient, desk: str) -> None:
    asked = {"image": desk, "labels": "star", "overlay": True, "polygons": True}
    body = client.post("/v1/segment", json=asked).json()
    assert body["detections"][0]["mask"]["size"] == [480, 640]
    assert len(body["detections"][0]["polygons"][0]) >= 6
    assert body["overlay"].startswith("data:image/png;base64,")


def test_a_stream_is_the_answer_in_pieces(client: TestClient, desk: str) -> None:
    asked = {"image": desk, "labels": "star"}
    whole = client.post("/v1/detect", json=asked).json()
    found = events(client.post("/v1/detect", json={**asked, "stream": True}).text)
    assert [name for name, _ in found][:1] == ["start"]
    assert "".join(data["text"] for name, data in found if name == "token") == whole["text"]
    name, done = found[-1]
    assert name == "done"
    assert done["detections"] == whole["detections"]


def test_a_picture_is_asked_again_by_its_id(client: TestClient, desk: str) -> None:
    first = client.post("/v1/caption", json={"image": desk}).json()
    again = client.post("/v1/caption", json={"image_id": first["image"]["id"]}).json()
    assert again["text"] == first["text"]
    missing = client.post("/v1/caption", json={"image_id": "sha256:0"})
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "image_not_found"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "labels is missing; state it"),
        (
            {"labels": "star", "thresold": 1},
            "there is no field thresold here; did you mean threshold?",
        ),
        ({"labels": 3}, "labels must be a list or a text, got 3"),
        ({"labels": ["star", 3]}, "labels.1 must be a text, got 3"),
        ({"labels": "star", "seed": -1}, "seed must be at least 0, got -1"),
        ({"labels": "star", "seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"labels": "star", "top_p": 0}, "top_p must be above 0.0, got 0"),
        ({"labels": "star", "stream": "on"}, "stream must be true or false, got 'on'"),
        (
            {"labels": "star", "probabilities": "all"},
            "probabilities must be 'vocabulary' or 'allowed', got 'all'",
        ),
        (
            {"labels": "star", "image_id": "x" * 200},
            "image_id must be a text of at most 100 characters, got a text of 200 characters",
        ),
        (
            {"labels": "star", "choices": []},
            "choices must be a list of at least 1, got a list of 0",
        ),
        ({"labels": "star", "json_schema": []}, "json_schema must be an object, got a list of 0"),
    ],
)
def test_a_field_that_is_missing_or_misspelt_is_named(
    client: TestClient, desk: str, fields: dict[str, object], sentence: str
) -> None:
    refused = client.post("/v1/detect", json={"image": desk, **fields})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == sentence


def form(kind: str, *parts: bytes) -> tuple[bytes, dict[str, str]]:
    body = b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return body + b"--x--\r\n", {"Content-Type": kind}


@pytest.mark.parametrize("name", ["undefined", "punycode", '"IDNA"', "unicode_escape", "utf-7"])
def test_a_form_in_another_alphabet_is_refused(client: TestClient, name: str) -> None:
    part = b'name="labels"; filename="star-\xff!"\r\n\r\nstar'
    body, kind = form(f"multipart/form-data; boundary=x; charset={name}", part)
    answer = client.post("/v1/detect", content=body, headers=kind)
    assert answer.status_code == 400
    assert "a form must be in UTF-8" in answer.json()["error"]["message"]


def test_a_form_may_hold_a_long_picture_in_base64(client: TestClient, desk: str) -> None:
    image = desk + base64.b64encode(bytes(1_500_000)).decode()  # behind the picture's end
    picture, words = b'name="image"\r\n\r\n' + image.encode(), b'name="labels"\r\n\r\nstar'
    body, kind = form("Multipart/Form-Data; Charset=UTF-8; Boundary=x", picture, words)
    answer = client.post("/v1/detect", content=body, headers=kind)
    assert answer.status_code == 200, answer.text
    assert answer.json()["detections"]


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
)
@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_a_schema_that_nothing_fulfils_is_the_fault_of_who_sent_it(
    client: TestClient, desk: str, schema: dict, more: dict
) -> None:
    asked = {"image": desk, "prompt": "caption en", "json_schema": schema, **more}
    answer = client.post("/v1/ask", json=asked)
    assert answer.status_code == 400, answer.text
    assert "leaves nothing to write" in answer.json()["error"]["message"]


# What curl makes of -F 'labels=…' is never more than these: a part of what stands before the first
# semicolon, with a filename or a content type where the rest names one; or a part in quotes, whole.
@pytest.mark.parametrize(
    ("parts", "labels"),
    [
        ([b'name="labels"\r\n\r\nstar'], ["star"]),
        ([b'name="labels"\r\n\r\nstar;digit'], ["star", "digit"]),
        ([b'name="labels"\r\n\r\nstar', b'name="labels"\r\n\r\ndigit'], ["star", "digit"]),
        ([b'name="labels"\r\nContent-Type: text/plain\r\n\r\nstar'], ["star"]),
    ],
)
def test_a_form_of_curl_says_what_is_asked_for(
    client: TestClient, desk: str, parts: list[bytes], labels: list[str]
) -> None:
    picture = b'name="image"\r\n\r\n' + desk.encode()
    body, kind = form("multipart/form-data; boundary=x", picture, *parts)
    answer = client.post("/v1/detect", content=body, headers=kind).json()
    assert answer["asked_labels"] == labels


def test_text_that_came_as_a_file_is_told_how_to_be_written(client: TestClient, desk: str) -> None:
    part = b'name="labels"; filename="digit"\r\n\r\nstar'
    body, kind = form("multipart/form-data; boundary=x", part)
    answer = client.post("/v1/detect", content=body, headers=kind)
    assert answer.status_code == 400
    assert "--form-string 'labels=...'" in answer.json()["error"]["message"]
    body, kind = form("multipart/form-data; boundary=x", part.replace(b"labels", b"photo"))
    answer = client.post("/v1/detect", content=body, headers=kind)
    assert "no field 'photo' takes a file; send it as image" in answer.json()["error"]["message"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["-F", "labels=star", "-F", "labels=digit"], ["star", "digit"]),
        (["--form-string", "labels=star;digit"], ["star", "digit"]),
        (["-F", 'labels="star;digit"'], ["star", "digit"]),
        (["-F", "labels=star;digit"], ["star"]),  # curl warns that it leaves the rest out
        (["-F", "labels=star;filename=digit"], None),
    ],
)
def test_curl_itself_asks(local: PaliGemma, words: list[str], labels: list[str] | None) -> None:
    options = ServerOptions()
    service = Service.of(Models([ModelSpec(name="tiny", load=lambda: local)], options), options)
    with live(create_app(service)) as server:
        url = f"{server.url}/v1/detect"
        done = subprocess.run(
            ["curl", "-sS", "-m", "60", "-F", f"image=@{DESK}", *words, url],
            capture_output=True,
            text=True,
            check=True,
        )
    answer = json.loads(done.stdout)
    if labels is None:
        assert "--form-string" in answer["error"]["message"]
    else:
        assert answer["asked_labels"] == labels
        assert answer["detections"]
