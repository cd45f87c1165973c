"""Encoded pictures are kept within a bound that the user sets, and /metrics counts them."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from paligemma import PaliGemma
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.offered import Offered
from paligemma.serve.options import ServerOptions


def counted(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    name, of_tiny = "paligemma_picture_cache_", '{model="tiny"}'
    return {
        line.split(of_tiny)[0].removeprefix(name): float(line.split()[1])
        for line in lines
        if line.startswith(name)
    }


@pytest.mark.parametrize(("max_bytes", "num_kept"), [(1 << 20, 1), (0, 0)])
def test_metrics_show_bytes_bound_hits_and_misses(desk: str, max_bytes: int, num_kept: int) -> None:
    offered = Offered.of(["tiny"], options={"picture_cache_bytes": max_bytes})
    options = ServerOptions()
    service = Service.of(Models(offered.specs(), options), options)
    with TestClient(create_app(service)) as client:
        asked = {"image": desk, "prompt": "caption en", "max_new_tokens": 2}
        for _ in range(3):
            assert client.post("/v1/ask", json=asked).status_code == 200
        found = counted(client)
    config = PaliGemma.from_pretrained("tiny").config
    size = 4 * config.num_image_tokens * config.text.width
    assert found == {
        "bytes": num_kept * size,
        "max_bytes": max_bytes,
        "hits_total": 2 * num_kept,
        "misses_total": num_kept,
    }


def test_a_model_of_the_users_own_keeps_its_bound(desk: str) -> None:
    spec = ModelSpec(
        name="tiny", load=lambda: PaliGemma.from_pretrained("tiny", picture_cache_bytes=5000)
    )
    options = ServerOptions()
    with TestClient(create_app(Service.of(Models([spec], options), options))) as client:
        client.post("/v1/ask", json={"image": desk, "prompt": "ocr", "max_new_tokens": 2})
        assert counted(client)["max_bytes"] == 5000
        assert counted(client)["bytes"] <= 5000
