"""Two replicas of Ray Serve answer as the server alone does, streams too."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from paligemma import PaliGemma
from tests.serve.conftest import DESK

pytest.importorskip("grpc", reason="needs ray[serve]")
serve = pytest.importorskip("ray.serve", reason="needs ray[serve]")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    import ray

    from paligemma.serve.ray_app import build
    from paligemma.stop_signals import handler_kept

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with handler_kept(signal.SIGTERM):
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"port": port, "host": "127.0.0.1"})
        serve.run(build({"model": "tiny", "replicas": "2"}))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as found:
            yield found
    finally:
        serve.shutdown()
        ray.shutdown()


def told(client: httpx.Client, metric: str) -> set[float]:
    """The values of a metric; one of each replica, as the router chooses who answers."""
    found = set()
    for _ in range(30):
        text = client.get("/metrics").text
        value = re.search(rf"^{re.escape(metric)} (.*)$", text, re.MULTILINE)
        found.add(float(value[1]) if value else 0.0)
    return found


def test_both_of_two_replicas_answer_as_the_model_alone(client: httpx.Client, desk: str) -> None:
    states = serve.status().applications["default"].deployments["paligemma"].replica_states
    assert states == {"RUNNING": 2}
    expected = PaliGemma.from_pretrained("tiny").detect(DESK, "star").text
    for _ in range(20):
        body = client.post("/v1/detect", json={"image": desk, "labels": "star"}).json()
        assert body["text"] == expected
    counts = told(client, 'paligemma_requests_total{code="200",route="/v1/detect"}')
    print(f"answers of each replica: {counts}")
    assert counts == {10.0} or (len(counts) == 2 and sum(counts) == 20 and min(counts) > 0)


def test_answers_of_both_stream_as_they_are_written(client: httpx.Client, desk: str) -> None:
    asked = {"image": desk, "prompt": "caption en", "temperature": 10.0, "max_new_tokens": 300}

    def ask(seed: int) -> tuple[str, float, float]:
        """The text in pieces, and the seconds until its first token and its end."""
        pieces, first_s, start = [], 0.0, time.monotonic()
        body = {**asked, "seed": seed, "stream": True}
        with client.stream("POST", "/v1/ask", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: token") and not first_s:
                    first_s = time.monotonic() - start
                if line.startswith("data: "):
                    pieces.append(json.loads(line[6:]))
        return "".join(one["text"] or "" for one in pieces[1:-1]), first_s, time.monotonic() - start

    with ThreadPoolExecutor(8) as clients:
        told = list(clients.map(ask, range(8)))
    for seed, (text, first_s, took_s) in enumerate(told):
        assert text == client.post("/v1/ask", json={**asked, "seed": seed}).json()["text"]
        assert first_s < took_s / 2
    assert len({text for text, *_ in told}) == 8


def test_who_leaves_a_stream_frees_its_place_in_the_replica(
    client: httpx.Client, desk: str
) -> None:
    written = 'paligemma_tokens_total{kind="completion"}'
    before = max(told(client, written))
    asked = {"image": desk, "prompt": "caption en", "temperature": 10.0, "max_new_tokens": 1024}
    for seed in range(6):
        body = {**asked, "seed": seed, "stream": True}
        with client.stream("POST", "/v1/ask", json=body) as answer:
            next(answer.iter_lines())
    end = time.monotonic() + 20
    while told(client, "paligemma_requests_running") != {0.0}:
        assert time.monotonic() < end
    num_written = max(told(client, written)) - before
    print(f"the busier replica wrote {num_written:.0f} tokens")
    assert 0 < num_written < 512
