"""Hostile bodies for every route of the server, as JSON and as forms, over HTTP."""

from __future__ import annotations

import base64
import functools
import json
import random
from typing import Any

from fuzz.damage import damaged_bytes, damaged_json
from fuzz.pictures import sound_pictures

from paligemma.errors import PaliGemmaError

NAME = "bodies"
MAX_MB = 2048

_OPTIONS: dict[str, list[Any]] = {
    "model": ["tiny"],
    "max_new_tokens": [1, 3],
    "temperature": [0, 0.7],
    "top_k": [5],
    "top_p": [0.9],
    "num_beams": [1, 2],
    "seed": [1],
    "weigh_locations": [True],
    "probabilities": ["vocabulary"],
    "choices": [["yes", "no"]],
    "json_schema": [{"type": "object", "properties": {"a": {"type": "integer"}}}],
    "tokens": [True],
    "stream": [True, False],
}
_OBJECTS: dict[str, list[Any]] = {
    "threshold": [0.5],
    "max_overlap": [0.5],
    "constrain": [True],
    "max_objects": [2],
    "no_repeats": [True],
    "overlay": [True],
    "polygons": [True],
}
_ROUTES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "detect": ({"labels": ["star", "digit"]}, _OPTIONS | _OBJECTS),
    "segment": ({"labels": "star"}, _OPTIONS | _OBJECTS),
    "caption": ({"lang": "en", "style": "cap"}, _OPTIONS),
    "answer": ({"question": "what?"}, _OPTIONS),
    "read": ({}, _OPTIONS),
    "ask": ({"prompt": "detect star"}, _OPTIONS | _OBJECTS),
}
_CHAT: dict[str, list[Any]] = {
    "n": [1, 2],
    "max_tokens": [2],
    "max_completion_tokens": [2],
    "temperature": [0, 1],
    "top_p": [0.5],
    "seed": [3],
    "stop": ["a", ["b", "c"]],
    "logprobs": [True],
    "top_logprobs": [3],
    "stream": [True, False],
    "stream_options": [{"include_usage": True}],
    "response_format": [
        {"type": "text"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
    ],
    "user": ["u"],
    "frequency_penalty": [0],
    "logit_bias": [{"5": 1}],
    "tools": [[]],
}


class Refused(PaliGemmaError):
    """The server answered with a status of 4xx and a sentence."""


@functools.cache
def client() -> Any:
    """A client of a server of the embedded model in this process."""
    from starlette.testclient import TestClient

    from paligemma import PaliGemma
    from paligemma.serve.app import create_app
    from paligemma.serve.asking import Service
    from paligemma.serve.models import Models, ModelSpec
    from paligemma.serve.options import ServerOptions

    options = ServerOptions(max_new_tokens=16)
    models = Models(
        [ModelSpec(name="tiny", load=lambda: PaliGemma.from_pretrained("tiny"))], options
    )
    service = Service.of(models, options)
    service.worker.start()
    return TestClient(create_app(service))


def prepare() -> None:
    """Load the model."""
    require_sane(client().post("/v1/ask", json={"prompt": "a", "max_new_tokens": 1}))


def make(rng: random.Random) -> tuple[str, tuple[str, bytes, str]]:
    """A route, a body and its kind; the body sound, or with faults."""
    picture = "data:image/png;base64," + base64.b64encode(sound_pictures()["png"]).decode()
    route = rng.choice([*_ROUTES, "chat/completions"])
    if route == "chat/completions":
        part = {"type": "image_url", "image_url": {"url": picture, "detail": "low"}}
        content = [{"type": "text", "text": "detect star"}, part]
        messages: list[Any] = [{"role": "system", "content": "be brief"}]
        messages.append({"role": "user", "content": rng.choice([content, "caption en"])})
        fields: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 2}
        options = _CHAT
    else:
        more, options = _ROUTES[route]
        fields = {"image": picture, "max_new_tokens": 2, **more}
    for name in rng.sample(list(options), rng.choice((0, 1, 2, 4))):
        fields[name] = rng.choice(options[name])
    if route != "chat/completions" and rng.random() < 0.3:
        what, body = _form(fields, rng)
        return f"{route} form with {what}", (route, body, "multipart/form-data; boundary=xYz")
    what, body = damaged_json(json.dumps(fields).encode(), rng)
    kind = rng.choice(("application/json", "application/json", "text/plain", ""))
    return f"{route} with {what}", (route, body, kind)


def _form(fields: dict[str, Any], rng: random.Random) -> tuple[str, bytes]:
    body = b""
    what, damaged = damaged_json(json.dumps(fields).encode(), rng)
    try:
        fields = json.loads(damaged)
    except (ValueError, RecursionError):
        what = "nothing damaged"
    for name, value in fields.items() if isinstance(fields, dict) else ():
        head = f'--xYz\r\nContent-Disposition: form-data; name="{name[:500]}"'.encode(
            errors="replace"
        )
        if name == "image":
            head += b'; filename="a.png"\r\nContent-Type: image/png'
            data = sound_pictures()["png"]
        else:
            data = (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")
        body += head + b"\r\n\r\n" + data + b"\r\n"
    body += b"--xYz--\r\n"
    if rng.random() < 0.3:
        return damaged_bytes(body, rng)
    return what, body


def attempt(given: tuple[str, bytes, str]) -> None:
    """Send it.

    Raises:
        Refused: with an error in the common shape.
        AssertionError: a status of 5xx, or an error of another shape.
    """
    route, body, kind = given
    headers = {"Content-Type": kind} if kind else {}
    require_sane(client().post(f"/v1/{route}", content=body, headers=headers))


def require_sane(answer: Any) -> None:
    """An answer is one, or an error in the common shape that is not the server's."""
    assert answer.status_code < 500, answer.text[:300]
    assert answer.headers["x-request-id"]
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}
        raise Refused(error["message"][:1000])
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert "server_error" not in answer.text, answer.text[-300:]
    else:
        answer.json()
