"""Models that do not load, and models that are forgotten while others ask for them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from paligemma import PaliGemma
from paligemma.serve import models as models_module
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from serve.conftest import tiny


def serving(*specs: ModelSpec, **bounds: Any) -> Service:
    options = ServerOptions(**bounds)
    return Service.of(Models(specs, options), options)


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[tuple[TestClient, list[str]]]:
    """A server with models that do not load, and the names that were tried."""
    tried: list[str] = []
    (tmp_path / "config.json").write_text("{}")

    def load(name: str) -> PaliGemma:
        tried.append(name)
        if name == "full":
            raise RuntimeError(f"out of memory at {tmp_path}")
        return PaliGemma.from_pretrained(tmp_path / ("none" if name == "none" else ""))

    names = ("none", "empty", "full")
    specs = [ModelSpec(name=name, load=partial(load, name)) for name in names]
    service = serving(ModelSpec(name="tiny", load=tiny), *specs)
    with TestClient(create_app(service)) as client:
        yield client, tried


@pytest.mark.parametrize("name", ["none", "empty", "full"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_model_that_does_not_load_is_a_fault_of_the_server_without_its_paths(
    broken: tuple[TestClient, list[str]],
    tmp_path: Path,
    desk: str,
    caplog: pytest.LogCaptureFixture,
    name: str,
    is_streamed: bool,
) -> None:
    client, tried = broken
    asked = {"model": name, "image": desk, "stream": is_streamed}
    answers = [client.post("/v1/caption", json=asked) for _ in range(3)]
    for answer in answers:
        error = answer.json()["error"]
        assert answer.status_code == 503
        assert (error["code"], error["param"]) == ("model_not_loaded", "model")
        assert f"the model '{name}' does not load here" in error["message"]
        assert str(tmp_path) not in answer.text
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert tried == [name]  # and not again for every request
    assert str(tmp_path) in caplog.text
    assert client.post("/v1/caption", json={"image": desk}).status_code == 200


def test_a_model_that_did_not_load_is_tried_again_later(
    desk: str, local: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "_RETRY_S", 0)
    loads = iter([OSError("a disk that was away"), local])

    def load() -> PaliGemma:
        found = next(loads)
        if isinstance(found, Exception):
            raise found
        return found

    service = serving(ModelSpec(name="tiny", load=tiny), ModelSpec(name="late", load=load))
    with TestClient(create_app(service)) as client:
        asked = {"model": "late", "image": desk}
        codes = [client.post("/v1/caption", json=asked).status_code for _ in range(3)]
    assert codes == [503, 200, 200]


def test_models_that_push_each_other_out_answer_all_the_same(local: PaliGemma, desk: str) -> None:
    """Four models in turns, with room for one and a half."""
    size = sum(one.nbytes for one in local.model.parameters())
    loads: list[str] = []

    def load(name: str) -> PaliGemma:
        loads.append(name)
        return tiny()

    names = [f"m{number}" for number in range(4)]
    specs = [ModelSpec(name=name, load=partial(load, name)) for name in names]
    service = serving(*specs, max_model_bytes=int(1.5 * size))
    expected, rng = local.caption(desk).text, random.Random(0)
    with TestClient(create_app(service)) as client:

        def ask(name: str) -> str:
            answer = client.post("/v1/caption", json={"model": name, "image": desk})
            assert answer.status_code == 200, answer.text
            return answer.json()["text"]

        with ThreadPoolExecutor(6) as clients:
            texts = list(clients.map(ask, rng.choices(names, k=24)))
        assert set(texts) == {expected}
        assert len(loads) > 4  # some were loaded again
        assert len(service.models._loaded) == 1
