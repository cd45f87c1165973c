"""The tool of an agent that searches documents, called by the protocol's own client."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

import anyio
from mcp import Client
from PIL import Image

from paligemma.retrieval.colpali import ColPali
from paligemma.retrieval.index import PageIndex
from paligemma.scenes import draw_scene
from paligemma.serve.asking import Service
from paligemma.serve.library import Library, Shelf
from paligemma.serve.mcp import create_mcp
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from paligemma.serve.roots import Roots
from tests.retrieval.random_colpali import random_colpali

QUERY = "a red star"


@pytest.fixture(scope="module")
def model() -> ColPali:
    return random_colpali(seed=5, dim=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pages")
    for seed in range(3):
        Image.fromarray(draw_scene(seed).image).save(found / f"{seed}.png")
    return found


@pytest.fixture(scope="module")
def service(model: ColPali, folder: Path) -> Iterator[Service]:
    def open_shelf() -> Shelf:
        index = PageIndex.open("memory://", model)
        index.add(folder)
        return Shelf(name="library", index=index)

    options = ServerOptions()
    models = Models([ModelSpec(name="tiny", load=lambda: model.pg)], options)
    found = Service.of(models, options, library=Library(open_shelf, options))
    found.worker.start()
    yield found
    found.close()


def talk(
    service: Service, roots: list[Path], said: Callable[[Client], Coroutine[Any, Any, Any]]
) -> Any:
    async def run() -> Any:
        async with Client(create_mcp(service, Roots(roots))) as client:
            return await said(client)

    return anyio.run(run)


def test_pages_come_with_pictures_and_with_paths_below_a_root(
    service: Service, model: ColPali, folder: Path
) -> None:
    called = talk(service, [folder], lambda client: client.call_tool("search", {"query": QUERY}))
    body = called.structured_content
    assert json.loads(called.content[0].text) == body
    with PageIndex.open("memory://", model) as index:
        index.add(folder)
        hits = index.search(QUERY, k=3)
    assert [one["id"] for one in body["hits"]] == [hit.id for hit in hits]
    assert [one["path"] for one in body["hits"]] == [hit.path for hit in hits]
    assert [word["word"] for word in body["hits"][0]["words"]] == ["a", "red", "star"]
    pictures = [base64.b64decode(one.data) for one in called.content[1:]]
    assert pictures == [hit.thumbnail for hit in hits]


def test_heat_is_drawn_on_the_pictures_and_other_paths_stay_hidden(
    service: Service, tmp_path: Path
) -> None:
    asked = {"query": QUERY, "k": 1}
    plain = talk(service, [tmp_path], lambda client: client.call_tool("search", asked))
    hot = talk(service, [], lambda client: client.call_tool("search", {**asked, "heat": True}))
    assert plain.structured_content["hits"][0]["path"] is None
    one, other = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(called.content[1].data)))).astype(int)
        for called in (plain, hot)
    )
    assert one.shape == other.shape
    assert np.abs(one - other).max() > 60


def test_pictures_may_be_left_out_and_wrong_fields_are_sentences(service: Service) -> None:
    asked = {"query": QUERY, "pictures": False}
    called = talk(service, [], lambda client: client.call_tool("search", asked))
    assert [one.type for one in called.content] == ["text"]
    wrong = talk(service, [], lambda client: client.call_tool("search", {"query": "", "k": 2}))
    assert wrong.is_error
    assert "query" in wrong.content[0].text


def test_a_server_without_an_index_does_not_offer_the_tool(
    service: Service, model: ColPali
) -> None:
    options = ServerOptions()
    plain = Service.of(Models([ModelSpec(name="tiny", load=lambda: model.pg)], options), options)

    async def names(client: Client) -> set[str]:
        return {tool.name for tool in (await client.list_tools()).tools}

    try:
        assert talk(service, [], names) - talk(plain, [], names) == {"search"}
    finally:
        plain.close()
