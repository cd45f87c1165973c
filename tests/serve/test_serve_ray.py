"""Two replicas of Ray Serve answer as the server alone does, streams too."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest

from paligemma import PaliGemma
from tests.serve.conftest import DESK

pytest.importorskip("grpc", reason="needs ray[serve]")
serve = pytest.importorskip("ray.serve", reason="needs ray[serve]")

PORT = 8765


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    import ray

    from paligemma.serve.ray_app import build

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"port": PORT, "host": "127.0.0.1"})
        serve.run(build({"model": "tiny", "replicas": "2"}))
        yield f"http://127.0.0.1:{PORT}"
    finally:
        serve.shutdown()
        ray.shutdown()


def post(url: str, body: dict) -> str:
    heading = {"Content-Type": "application/json"}
    asked = urllib.request.Request(url, json.dumps(body).encode(), heading)
    return urllib.request.urlopen(asked, timeout=60).read().decode()


def test_two_replicas_answer_and_stream(url: str, desk: str) -> None:
    expected = PaliGemma.from_pretrained("tiny").detect(DESK, "star").text
    assert len(serve.status().applications["default"].deployments) == 1
    for _ in range(6):
        body = json.loads(post(f"{url}/v1/detect", {"image": desk, "labels": "star"}))
        assert body["text"] == expected
    told = post(f"{url}/v1/detect", {"image": desk, "labels": "star", "stream": True})
    lines = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
    assert "".join(line.get("text") or "" for line in lines[1:-1]) == expected
