"""Who goes away frees what was held, and no text of a prompt becomes a control token."""

from __future__ import annotations

import json
import random
import time

from paligemma import PaliGemma
from paligemma.serve.app import create_app
from serve.conftest import serving
from serve.live import live

_CONTROL = ("<image>", "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<mask>", "<unused0>")
_WORDS = (
    "detect",
    "cat",
    ";",
    "\n",
    " ",
    "caption en",
    "<loc0001>",
    "<",
    ">",
    "é日本",
    "<ima",
    "ge>",
)


def test_clients_that_go_away_at_any_moment_leave_nothing_behind(desk: str) -> None:
    service = serving()
    app, rng = create_app(service), random.Random(0)
    with live(app) as server:
        for number in range(40):
            asked = {"image": desk, "prompt": "detect star ; digit", "stream": number % 2 == 0}
            body = json.dumps(asked).encode()
            head = b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            with server.connect() as one:
                one.sendall((head + body)[: rng.choice((30, 4000, None, None, None))])
                time.sleep(rng.random() * 0.05)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            load = service.worker.load
            if load.running == load.waiting == app.state.gate.num_inside == 0:
                break
            time.sleep(0.02)
        assert service.worker.load.running == service.worker.load.waiting == 0
        assert app.state.gate.num_inside == app.state.gate.num_body_bytes == 0


def test_control_tokens_in_a_prompt_are_text(local: PaliGemma) -> None:
    rng, vocab = random.Random(0), local.processor.vocab
    control = {vocab.pad, vocab.eos, vocab.bos, vocab.image}
    for _ in range(1000):
        pieces = rng.choices((*_CONTROL, *_WORDS), k=rng.randrange(1, 12))
        prompt = "x " + "".join(pieces) + " y"
        for request in local.question(prompt, has_picture=True).requests:
            first, *others = request.row.tokens
            assert first == vocab.bos
            assert not control & set(others), prompt
