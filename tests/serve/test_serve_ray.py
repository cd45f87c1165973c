"""Two replicas of Ray Serve answer as the server alone does, by every name, streams too."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma import PaliGemma
from paligemma.adapt.lora import Adapter, LoraConfig
from paligemma.errors import ConfigError
from paligemma.weights.adapter import save_adapter
from tests.serve.conftest import DESK

pytest.importorskip("grpc", reason="needs ray[serve]")
serve = pytest.importorskip("ray.serve", reason="needs ray[serve]")

PORT = 8765


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes answers."""
    plain = PaliGemma.from_pretrained("tiny")
    adapter = Adapter.new(plain.model, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(adapter.named_parameters()):
            parameter.add_(
                0.3 * torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter)
            )
    return save_adapter(adapter, plain.model, tmp_path_factory.mktemp("run") / "cards", base="tiny")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    import ray

    from paligemma.serve.ray_app import build

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"port": PORT, "host": "127.0.0.1"})
        args = {"model": "tiny ; tiny:int8", "adapter": f"cards={folder}", "replicas": "2"}
        serve.run(build({**args, "max_rows": "4", "picture_cache_bytes": "1MB"}))
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


def test_models_and_adapters_answer_by_their_names(url: str, folder: Path) -> None:
    listed = json.loads(urllib.request.urlopen(f"{url}/v1/models", timeout=60).read())
    assert [one["id"] for one in listed["data"]] == ["tiny", "cards", "tiny:int8"]
    own = PaliGemma.from_pretrained("tiny", adapters={"cards": folder})
    for name, adapter in (("tiny", None), ("cards", "cards"), ("tiny:int8", None)):
        asked: dict[str, Any] = {"prompt": "caption en", "max_new_tokens": 12, "model": name}
        body = json.loads(post(f"{url}/v1/ask", asked))
        assert body["model"] == name
        if name != "tiny:int8":
            expected = own.ask(None, "caption en", max_new_tokens=12, adapter=adapter).text
            assert body["text"] == expected
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(f"{url}/v1/ask", {"prompt": "caption en", "num_beams": 8})


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"modle": "tiny"}, "did you mean"),
        ({"replicas": "0"}, "replicas is a number from 1"),
        ({"gpus": "all"}, "gpus is a number"),
        ({"model": ["tiny", "tiny"]}, "named once"),
        ({"adapter": ["cards@other=x"]}, "which is not served"),
        ({"max_rows": "many"}, "a number above 0"),
    ],
)
def test_what_does_not_fit_is_a_sentence(args: dict[str, Any], sentence: str) -> None:
    from paligemma.serve.ray_app import build

    with pytest.raises(ConfigError, match=sentence):
        build(args)
