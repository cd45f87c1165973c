"""Damaged pictures sent to the server, as files, data URLs and parts of a chat."""

from __future__ import annotations

import base64
import random

from fuzz import bodies, pictures

NAME = "uploads"
MAX_MB = 2048
prepare = bodies.prepare


def make(rng: random.Random) -> tuple[str, tuple[bytes, int]]:
    """A picture with faults, or rarely without, and the way it is sent."""
    if rng.random() < 0.05:
        name = rng.choice(list(pictures.sound_pictures()))
        return f"sound {name}", (pictures.sound_pictures()[name], rng.randrange(3))
    what, (data, _) = pictures.make(rng)
    return what, (data, rng.randrange(3))


def attempt(given: tuple[bytes, int]) -> None:
    """Send it; raises as `bodies.attempt`."""
    data, way = given
    client, short = bodies.client(), {"max_new_tokens": 1}
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    if way == 0:
        answer = client.post("/v1/caption", files={"image": ("a.png", data)}, data=short)
    elif way == 1:
        answer = client.post("/v1/detect", json={"image": url, "labels": "star", **short})
    else:
        part = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [{"type": "text", "text": "caption en"}, part]}]
        chat = {"messages": messages, "max_tokens": 1}
        answer = client.post("/v1/chat/completions", json=chat)
    bodies.require_sane(answer)
