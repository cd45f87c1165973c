"""A server's index of pages: searched, embedded, added to; over HTTP, by the client, as a tool."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")

from starlette.testclient import TestClient

from paligemma import Client
from paligemma.errors import ConfigError
from paligemma.retrieval.colpali import ColPali
from paligemma.retrieval.heat import contrasts, heat_range, heat_rgba, similarity_maps, word_scores
from paligemma.retrieval.index import PageIndex
from paligemma.scenes import draw_scene
from paligemma.serve.app import create_app
from paligemma.serve.asking import Service
from paligemma.serve.errors import ServeError
from paligemma.serve.library import Library, Shelf
from paligemma.serve.models import Models, ModelSpec
from paligemma.serve.options import ServerOptions
from tests.retrieval.random_colpali import random_colpali
from tests.serve.live import live

NUM_PAGES = 4
QUERY = "a red star"
WORDS = ["a", "red", "star"]


@dataclass
class Served:
    """A server with an index, and the same index without one."""

    client: TestClient
    service: Service
    model: ColPali
    index: PageIndex
    pages: list[Path]
    uploads: Path

    def post(self, path: str, **fields: Any) -> Any:
        response = self.client.post(path, json=fields)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, **fields: Any) -> tuple[int, str, str]:
        response = self.client.post(path, json=fields)
        error = response.json()["error"]
        return response.status_code, error["code"], error["message"]


def service_of(model: ColPali, library: Library | None, **bounds: Any) -> Service:
    options = ServerOptions(**bounds)
    models = Models([ModelSpec(name="tiny", load=lambda: model.pg)], options)
    return Service.of(models, options, library=library)


@pytest.fixture(scope="module")
def model() -> ColPali:
    return random_colpali(seed=5, dim=32)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = [folder / f"scene <{seed}>.png" for seed in range(NUM_PAGES)]
    for seed, path in enumerate(found):
        Image.fromarray(draw_scene(seed).image).resize((200, 280)).save(path)
    return found


def library_of(
    model: ColPali, pages: list[Path], uploads: Path | None = None, **bounds: Any
) -> Library:
    def open_shelf() -> Shelf:
        index = PageIndex.open("memory://", model)
        index.add(pages)
        return Shelf(name="library", index=index, uploads=uploads, max_pages=NUM_PAGES + 2)

    return Library(open_shelf, ServerOptions(**bounds))


@pytest.fixture(scope="module")
def served(
    model: ColPali, pages: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    uploads = tmp_path_factory.mktemp("uploads")
    service = service_of(model, library_of(model, pages, uploads))
    index = PageIndex.open("memory://", model)
    index.add(pages)
    with TestClient(create_app(service)) as client:
        yield Served(client, service, model, index, pages, uploads)


def test_a_search_gives_the_pages_scores_and_heat_of_the_index_itself(served: Served) -> None:
    body = served.post("/v1/search", query=QUERY, k=3, heat=True)
    query = served.model.encode_queries([QUERY])[0]
    hits = served.index.search(query, k=3)
    assert [one["id"] for one in body["hits"]] == [hit.id for hit in hits]
    assert [one["score"] for one in body["hits"]] == pytest.approx(
        [h.score for h in hits], abs=1e-4
    )
    assert (body["index"], body["num_pages"]) == ("library", NUM_PAGES)
    vectors = [served.index.vectors(hit.id) for hit in hits]
    maps = contrasts([similarity_maps(query, one) for one in vectors])
    scale = heat_range(maps)
    for one, hit, page, heat in zip(body["hits"], hits, vectors, maps, strict=True):
        assert (one["file"], one["page"]) == (Path(hit.path).name, 1)
        assert (one["width"], one["height"]) == hit.size
        assert base64.b64decode(one["thumbnail"].partition(",")[2]) == hit.thumbnail
        assert [word["word"] for word in one["words"]] == WORDS
        scores = [word["score"] for word in one["words"]]
        assert scores == pytest.approx(word_scores(query, page), abs=1e-4)
        for shown, expected in zip(one["heat"]["words"], heat, strict=True):
            pixels = _pixels(shown)
            assert pixels.shape == (*expected.shape, 4)
            # Rounded where a batch of other rows moves the last bits.
            assert np.abs(pixels.astype(int) - heat_rgba(expected, scale)).max() <= 2
        any_word = heat_rgba(heat.amax(0), scale)
        assert np.abs(_pixels(one["heat"]["any"]).astype(int) - any_word).max() <= 2


def _pixels(address: str) -> Any:
    data = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def test_what_was_not_asked_for_is_not_sent_and_no_path_ever_is(served: Served) -> None:
    response = served.client.post("/v1/search", json={"query": QUERY, "thumbnails": False})
    hits = response.json()["hits"]
    assert len(hits) == NUM_PAGES
    assert {one["thumbnail"] for one in hits} == {None}
    assert {one["heat"] for one in hits} == {None}
    assert str(served.pages[0].parent) not in response.text
    facts = served.client.get("/v1/index").json()
    assert facts == {
        "index": "library",
        "model": served.model.identity,
        "dim": 32,
        "num_pages": NUM_PAGES,
        "writable": True,
    }


def test_the_best_pages_are_read_as_the_model_reads_them(served: Served) -> None:
    hits = served.post("/v1/search", query="what color?", k=3, answers=2)["hits"]
    paths = {path.name: path for path in served.pages}
    expected = [served.model.pg.answer(paths[one["file"]], "what color?").text for one in hits[:2]]
    assert [one["answer"] for one in hits] == [*expected, None]
    assert served.refused("/v1/search", query=QUERY, answers=1, model="other")[:2] == (
        404,
        "model_not_found",
    )
    assert "at most 8" in served.refused("/v1/search", query=QUERY, answers=9)[2]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_the_vectors_of_the_model(served: Served, encoding: str) -> None:
    images = [base64.b64encode(path.read_bytes()).decode() for path in served.pages[:2]]
    body = served.post(
        "/v1/embeddings", input=[QUERY, "ocr"], images=images, encoding_format=encoding
    )
    expected = served.model.encode_queries([QUERY, "ocr"])
    expected += served.model.encode_pages(served.pages[:2])
    assert [one["index"] for one in body["data"]] == [0, 1, 2, 3]
    for one, vectors in zip(body["data"], expected, strict=True):
        values = one["embedding"]
        if encoding == "base64":
            values = np.frombuffer(base64.b64decode(values), "<f4").reshape(one["shape"])
        np.testing.assert_allclose(values, vectors.values.numpy(), atol=1e-4)
    assert body["usage"]["prompt_tokens"] == sum(len(one.values) for one in expected)


def test_pages_are_added_beside_faults_and_removed_again(served: Served) -> None:
    data = io.BytesIO()
    Image.fromarray(draw_scene(77).image).save(data, "PNG")
    address = base64.b64encode(data.getvalue()).decode()
    files = {"../../.new page;.png": address, "broken.png": base64.b64encode(b"no").decode()}
    body = served.post("/v1/index", files=files)
    assert (body["added"], body["num_pages"]) == (1, NUM_PAGES + 1)
    assert len(body["faults"]) == 1
    assert body["faults"][0].startswith("broken.png: ")
    kept = [path for path in served.uploads.rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["broken.png", "new page_.png"]
    assert served.post("/v1/index", files=files)["added"] == 0  # it is there already
    found = served.post("/v1/search", query=QUERY, k=10)["hits"]
    new = next(one["id"] for one in found if one["file"] == "new page_.png")
    assert served.post("/v1/index/remove", ids=[new])["num_pages"] == NUM_PAGES
    refused = served.refused("/v1/index/remove", ids=["../../etc"])
    assert refused[:2] == (400, "invalid_request")


@pytest.mark.parametrize("name", ["\u9801" * 300, "x." + "\u9801" * 300, "..", ""])
def test_a_file_may_have_any_name(served: Served, name: str) -> None:
    data = f"no picture {name!r}".encode()
    body = served.post("/v1/index", files={name: base64.b64encode(data).decode()})
    assert (body["added"], len(body["faults"])) == (0, 1)
    (kept,) = (served.uploads / hashlib.sha256(data).hexdigest()).iterdir()
    assert 0 < len(kept.name.encode()) <= 100


def test_a_full_index_takes_no_more(served: Served, model: ColPali, pages: list[Path]) -> None:
    library = library_of(model, pages, served.uploads)
    object.__setattr__(library.shelf, "max_pages", NUM_PAGES)
    with TestClient(create_app(service_of(model, library))) as client:
        response = client.post("/v1/index", json={"files": {"a.png": "aGk="}})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "index_full"


def test_a_search_does_not_wait_for_all_pages_of_a_document(
    model: ColPali, pages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_of(model, pages, tmp_path)
    sides = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green")]
    several = io.BytesIO()
    sides[0].save(several, "TIFF", save_all=True, append_images=sides[1:])
    files = {"several.tiff": base64.b64encode(several.getvalue()).decode()}
    encode_pages, encode_queries, done = model.encode_pages, model.encode_queries, []
    is_adding = threading.Event()

    def page(pictures: Any, **options: Any) -> Any:
        done.append("page")
        is_adding.set()
        end = time.monotonic() + 10
        while done == ["page"] and library._num_waiting < 2 and time.monotonic() < end:
            time.sleep(0.01)
        return encode_pages(pictures, **options)

    def query(texts: Any, **options: Any) -> Any:
        done.append("query")
        return encode_queries(texts, **options)

    monkeypatch.setattr(model, "encode_pages", page)
    monkeypatch.setattr(model, "encode_queries", query)
    with (
        TestClient(create_app(service_of(model, library))) as client,
        ThreadPoolExecutor(1) as other,
    ):
        adding = other.submit(client.post, "/v1/index", json={"files": files})
        assert is_adding.wait(10)
        found = client.post("/v1/search", json={"query": QUERY, "k": 10}).json()["hits"]
        assert adding.result().json()["added"] == 2
    assert done == ["page", "query", "page"]
    assert len(found) in (NUM_PAGES, NUM_PAGES + 1)  # pages are kept every few seconds


def test_one_request_fills_an_index_up_to_its_limit(
    model: ColPali, pages: list[Path], tmp_path: Path
) -> None:
    library = library_of(model, pages, tmp_path)  # takes two pages more
    sides = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    several = io.BytesIO()
    sides[0].save(several, "TIFF", save_all=True, append_images=sides[1:])
    one = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(one, "PNG")
    files = {
        name: base64.b64encode(data.getvalue()).decode()
        for name, data in (("several.tiff", several), ("one.png", one))
    }
    with TestClient(create_app(service_of(model, library))) as client:
        body = client.post("/v1/index", json={"files": files}).json()
    assert (body["added"], body["num_pages"]) == (2, NUM_PAGES + 2)
    assert [fault.partition(":")[0] for fault in body["faults"]] == ["several.tiff", "one.png"]
    assert "takes no more" in body["faults"][1]


def test_vectors_are_asked_for_by_the_name_of_the_model_that_made_the_index(
    model: ColPali, pages: list[Path]
) -> None:
    def open_shelf() -> Shelf:
        index = PageIndex.open("memory://", "vidore/colpali-v1.3", load=lambda *_, **__: model)
        index.add(pages[:1])
        return Shelf(name="library", index=index)

    service = service_of(model, Library(open_shelf, ServerOptions()))
    with TestClient(create_app(service)) as client:
        for name, status in (("vidore/colpali-v1.3", 200), (model.identity, 200), ("", 404)):
            asked = {"model": name, "input": "a star"}  # OpenAI's clients always name a model
            assert client.post("/v1/embeddings", json=asked).status_code == status


def test_clients_may_only_search_an_index_without_a_folder_for_uploads(
    model: ColPali, pages: list[Path]
) -> None:
    with TestClient(create_app(service_of(model, library_of(model, pages)))) as client:
        assert client.get("/v1/index").json()["writable"] is False
        for path, fields in (
            ("/v1/index", {"files": {"a.png": "aGk="}}),
            ("/v1/index/remove", {"ids": ["0" * 64 + ":1"]}),
        ):
            response = client.post(path, json=fields)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "index_read_only"
        assert client.post("/v1/search", json={"query": QUERY}).status_code == 200


def test_a_server_without_an_index_says_so(model: ColPali) -> None:
    with TestClient(create_app(service_of(model, None))) as client:
        answers = [client.get("/v1/index")] + [
            client.post(path, json={}) for path in ("/v1/search", "/v1/embeddings", "/v1/index")
        ]
    for response in answers:
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "no_index"


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/v1/search", {}, "query is missing"),
        ("/v1/search", {"query": ""}, "query"),
        ("/v1/search", {"query": "a" * 2001}, "at most 2000 characters"),
        ("/v1/search", {"query": "a", "k": 101}, "k must be at most 100"),
        ("/v1/search", {"query": "a", "top": 3}, "no field top"),
        ("/v1/embeddings", {}, "1 to 64 queries and pages, got 0"),
        ("/v1/embeddings", {"input": ["a"] * 65}, "1 to 64 queries and pages, got 65"),
        ("/v1/embeddings", {"input": ["a", ""]}, "1 to 2000 characters"),
        ("/v1/embeddings", {"images": ["aGk="]}, "picture"),
        ("/v1/index", {"files": {}}, "files"),
    ],
)
def test_wrong_fields_are_refused_in_a_sentence(
    served: Served, path: str, fields: dict[str, Any], words: str
) -> None:
    status, _, message = served.refused(path, **fields)
    assert status == 400
    assert words in message
    assert served.refused("/v1/embeddings", model="other", input="a")[:2] == (
        404,
        "model_not_found",
    )


def test_searches_beyond_the_bound_are_refused_and_slow_ones_end(
    model: ColPali, pages: list[Path]
) -> None:
    library = library_of(model, pages, max_waiting=1, answer_s=1.0)
    begun, gate = threading.Event(), threading.Event()

    def slow(shelf: Shelf) -> str:
        begun.set()
        gate.wait(30)
        return shelf.name

    async def crowd() -> list[Any]:
        first = asyncio.create_task(library.run(slow))
        await asyncio.to_thread(begun.wait, 30)
        with pytest.raises(ServeError, match="1 searches wait already"):
            await library.run(slow)
        found = await asyncio.gather(first, return_exceptions=True)
        gate.set()
        while library._num_waiting:
            await asyncio.sleep(0.01)
        return [*found, await library.run(lambda shelf: shelf.name)]

    late, after = asyncio.run(crowd())
    assert isinstance(late, ServeError)
    assert late.status == 504
    assert after == "library"
    library.close()
    with pytest.raises(ServeError, match="the server is stopping"):
        asyncio.run(library.run(slow))


def test_the_client_searches_embeds_adds_and_removes(served: Served, tmp_path: Path) -> None:
    own = service_of(served.model, library_of(served.model, served.pages, tmp_path / "kept"))
    new, broken = tmp_path / "new.png", tmp_path / "broken.png"
    Image.fromarray(draw_scene(78).image).save(new)
    broken.write_bytes(b"no")
    with live(create_app(own)) as server, Client(server.url) as client:
        found = client.search(QUERY, k=2, heat=True)
        expected = served.index.search(QUERY, k=2)
        assert [one.id for one in found] == [hit.id for hit in expected]
        assert found[0].score == pytest.approx(expected[0].score, abs=1e-4)
        assert found[0].thumbnail == expected[0].thumbnail
        assert [word for word, _ in found[0].words] == WORDS
        assert [one[:4] for one in found[0].heat] == [b"\x89PNG"] * 3
        assert {one.answer for one in found} == {None}
        read = client.search("what color?", k=2, answers=1)
        assert isinstance(read[0].answer, str)
        assert read[1].answer is None
        assert client.index_facts()["num_pages"] == NUM_PAGES
        for mine, theirs in (
            (client.embed_queries([QUERY])[0], served.model.encode_queries([QUERY])[0]),
            (client.embed_pages([new])[0], served.model.encode_pages([new])[0]),
        ):
            np.testing.assert_allclose(mine, theirs.values.numpy(), atol=1e-4)
        faults = client.add_pages([new, broken])
        assert [one.partition(":")[0] for one in faults] == ["broken.png"]
        added = next(one for one in client.search(QUERY, k=9) if one.file == "new.png")
        client.remove_pages([added.id])
        assert client.index_facts()["num_pages"] == NUM_PAGES
        with pytest.raises(ConfigError, match="k must be at most 100"):
            client.search(QUERY, k=1000)
        with pytest.raises(ConfigError, match="check the path"):
            client.add_pages([tmp_path / "none.pdf"])
