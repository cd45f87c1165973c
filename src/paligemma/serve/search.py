"""The routes that search pages: /v1/search, /v1/index, /v1/embeddings."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from torch import Tensor

from paligemma.retrieval.adding import Added
from paligemma.retrieval.heat import (
    contrasts,
    data_url,
    heat_range,
    heat_url,
    similarity_maps,
    word_scores,
    words_of,
)
from paligemma.retrieval.items import Hit
from paligemma.retrieval.page_files import MAX_PAGES, PageBounds
from paligemma.retrieval.vectors import Vectors
from paligemma.serve.answers import (
    AddedBody,
    EmbeddingsBody,
    IndexBody,
    RemovedBody,
    SearchBody,
)
from paligemma.serve.asking import Service, usage
from paligemma.serve.bodies import read_json, validation_error
from paligemma.serve.errors import ServeError
from paligemma.serve.library import Library, Shelf
from paligemma.serve.openapi import answers, body_of
from paligemma.serve.page_answers import page_answers
from paligemma.serve.pictures import picture_bytes
from paligemma.serve.schemas import (
    MAX_INPUTS,
    MAX_QUERY_CHARS,
    AddRequest,
    EmbeddingsRequest,
    RemoveRequest,
    SearchRequest,
)
from paligemma.whole_file import whole_file

MAX_TEXT_CHARS = 1000  # of a page's own text, in a hit
# What is left of a name that a client gives to a file; file systems count its bytes.
_PLAIN = re.compile(r"[^\w .()+-]")
_MAX_NAME_BYTES = 100
BODIES = (
    *(SearchRequest, SearchBody, IndexBody, AddRequest, AddedBody, RemoveRequest, RemovedBody),
    *(EmbeddingsRequest, EmbeddingsBody),
)


def search_routes(service: Service) -> APIRouter:
    """All of them; without an index they say that the server has none."""
    router = APIRouter(tags=["search"])

    def add(path: str, method: str, handle: Any, fields: Any, body: Any, summary: str) -> None:
        router.add_api_route(
            path,
            handle,
            methods=[method],
            summary=summary,
            responses=answers(body, posts=fields is not None),
            openapi_extra=None if fields is None else body_of(fields),
        )

    async def search(request: Request) -> JSONResponse:
        library = library_of(service)
        asked = await _fields(request, SearchRequest)
        body, hits = await library.run(partial(_found, asked))
        texts = await page_answers(service, library, request.state.client, asked, hits)
        for hit, text in zip(body["hits"], texts, strict=False):
            hit["answer"] = text
        return JSONResponse(body)

    async def embed(request: Request) -> JSONResponse:
        library = library_of(service)
        asked = await _fields(request, EmbeddingsRequest)
        pictures = await service.sources.read(asked.images or [], "images")
        return JSONResponse(await library.run(partial(_embedded, asked, pictures)))

    async def facts(request: Request) -> JSONResponse:
        return JSONResponse(await library_of(service).run(_facts))

    async def put(request: Request) -> JSONResponse:
        library = _writable(service)
        asked = await _fields(request, AddRequest)
        files = {name: picture_bytes(text, "files") for name, text in asked.files.items()}
        return JSONResponse(await _added(library, files))

    async def remove(request: Request) -> JSONResponse:
        library = _writable(service)
        asked = await _fields(request, RemoveRequest)
        return JSONResponse(await library.run(partial(_removed, asked.ids)))

    add("/v1/search", "POST", search, SearchRequest, SearchBody, "Find pages that answer a query.")
    add("/v1/index", "GET", facts, None, IndexBody, "Which index is searched, and its size.")
    add("/v1/index", "POST", put, AddRequest, AddedBody, "Add pages, where clients may.")
    add("/v1/index/remove", "POST", remove, RemoveRequest, RemovedBody, "Take pages away.")
    words = "The vectors of queries and pages, one for each token."
    add("/v1/embeddings", "POST", embed, EmbeddingsRequest, EmbeddingsBody, words)
    return router


def library_of(service: Service) -> Library:
    """The index of a server.

    Raises:
        ServeError: 404, it has none.
    """
    if service.library is None:
        raise ServeError(
            "this server has no index of pages; start it with --index",
            status=404,
            code="no_index",
        )
    return service.library


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """A search that was done, with all that its answer is made of.

    Attributes:
        hits: the best first, with the vectors of their pages.
    """

    asked: SearchRequest
    query: Vectors
    hits: Sequence[Hit]
    pages: Sequence[Vectors]

    @classmethod
    def of(cls, asked: SearchRequest, shelf: Shelf) -> Search:
        """Search; in the library's thread."""
        query = shelf.model.encode_queries([asked.query])[0]
        hits = shelf.index.search(query, k=asked.k)
        pages = [shelf.index.vectors(hit.id) for hit in hits]
        return cls(asked=asked, query=query, hits=hits, pages=pages)

    def heat(self) -> list[Tensor]:
        """float32[W, H, V] of each hit: where each word is found; see `contrasts`."""
        return contrasts([similarity_maps(self.query, page) for page in self.pages])

    def body(self, shelf: Shelf) -> dict[str, Any]:
        """The answer, as JSON."""
        maps = self.heat() if self.asked.heat else []
        scale, words = heat_range(maps), [word.text for word in words_of(self.query)]
        hits = [self._hit(number, words) for number in range(len(self.hits))]
        for hit, one in zip(hits, maps, strict=False):
            if words:
                urls = [heat_url(layer, scale) for layer in (one.amax(0), *one)]
                hit["heat"] = {"any": urls[0], "words": urls[1:]}
        return {
            "query": self.asked.query,
            "index": shelf.name,
            "model": shelf.model.identity,
            "num_pages": shelf.index.count(),
            "hits": hits,
        }

    def _hit(self, number: int, words: Sequence[str]) -> dict[str, Any]:
        hit = self.hits[number]
        scores = word_scores(self.query, self.pages[number])
        is_shown = self.asked.thumbnails and hit.thumbnail
        return {
            "id": hit.id,
            "score": hit.score,
            "file": PurePath(hit.path).name,
            "page": hit.page,
            "width": hit.size[0],
            "height": hit.size[1],
            "thumbnail": data_url(hit.thumbnail) if is_shown else None,
            "text": str(hit.payload.get("text", ""))[:MAX_TEXT_CHARS],
            "words": [
                {"word": word, "score": score} for word, score in zip(words, scores, strict=True)
            ],
            "heat": None,
            "answer": None,
        }


def _found(asked: SearchRequest, shelf: Shelf) -> tuple[dict[str, Any], Sequence[Hit]]:
    search = Search.of(asked, shelf)
    return search.body(shelf), search.hits


def _facts(shelf: Shelf) -> dict[str, Any]:
    return {
        "index": shelf.name,
        "model": shelf.model.identity,
        "dim": shelf.model.dim,
        "num_pages": shelf.index.count(),
        "writable": shelf.uploads is not None,
    }


async def _added(library: Library, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Put the pages of files into the index, page by page, so that searches need not wait."""
    added, faults = 0, []
    for path in await library.run(partial(_kept_files, files)):
        room = await library.run(_room)
        if room <= 0:
            faults.append(f"{path.name}: the index is full and takes no more")
            continue
        result, bounds = Added(), PageBounds(max_pages=min(room, MAX_PAGES))
        steps = library.shelf.index.add_in_steps([path], result, bounds=bounds)
        try:
            while await library.run(partial(_is_on, steps), is_begun=True):
                pass
        finally:
            await library.run(partial(_closed, steps), is_begun=True)
        added += result.added
        faults += [f"{PurePath(one.path).name}: {one.reason}" for one in result.faults]
    return {"added": added, "num_pages": await library.run(_num_pages), "faults": faults}


def _kept_files(files: Mapping[str, bytes], shelf: Shelf) -> list[Path]:
    """The files of a request, written under the names that they came with."""
    before = shelf.index.count()
    if before >= shelf.max_pages or shelf.uploads is None:
        raise ServeError(
            f"this index takes no more than {shelf.max_pages:,} pages, it has {before:,}; remove "
            "some, or start the server with a higher --index-limit",
            status=403,
            code="index_full",
        )
    paths = []
    for name, data in files.items():
        plain = _plain(name)
        path = shelf.uploads / hashlib.sha256(data).hexdigest() / plain
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial_path:
            partial_path.write_bytes(data)
        paths.append(path)
    return paths


def _is_on(steps: Iterator[None], shelf: Shelf) -> bool:
    """Take a step; False where none is left."""
    return next(steps, False) is None


def _closed(steps: Generator[None], shelf: Shelf) -> None:
    steps.close()


def _room(shelf: Shelf) -> int:
    return shelf.max_pages - shelf.index.count()


def _num_pages(shelf: Shelf) -> int:
    return shelf.index.count()


def _plain(name: str) -> str:
    """A name for a file: no folder, not hidden, and the end of a long one."""
    last = _PLAIN.sub("_", PurePath(name.replace("\\", "/")).name)
    return last.encode()[-_MAX_NAME_BYTES:].decode(errors="ignore").lstrip(".") or "page"


def _removed(ids: Sequence[str], shelf: Shelf) -> dict[str, Any]:
    shelf.index.remove(ids)
    return {"num_pages": shelf.index.count()}


def _embedded(asked: EmbeddingsRequest, pictures: Sequence[bytes], shelf: Shelf) -> dict[str, Any]:
    named = shelf.index.card.model if shelf.index.card else ""
    if asked.model is not None and asked.model not in {shelf.model.identity, named} - {""}:
        raise ServeError(
            f"vectors come from the index's model, {shelf.model.identity}, got {asked.model!r:.100}"
            "; leave it out",
            status=404,
            code="model_not_found",
            param="model",
        )
    texts = [asked.input] if isinstance(asked.input, str) else list(asked.input or [])
    if not 0 < len(texts) + len(pictures) <= MAX_INPUTS:
        raise ServeError(
            f"a request has 1 to {MAX_INPUTS} queries and pages, got "
            f"{len(texts) + len(pictures)}; state input or images",
            param="input",
        )
    if not all(0 < len(text) <= MAX_QUERY_CHARS for text in texts):
        raise ServeError(
            f"a query has 1 to {MAX_QUERY_CHARS} characters; shorten it", param="input"
        )
    found = [*shelf.model.encode_queries(texts)] if texts else []
    found += shelf.model.encode_pages(pictures) if pictures else []
    number = sum(len(one.values) for one in found)
    data = [_vectors_body(k, one, asked.encoding_format) for k, one in enumerate(found)]
    return {
        "object": "list",
        "model": shelf.model.identity,
        "data": data,
        "usage": dict(usage(number, 0)),
    }


def _vectors_body(number: int, one: Vectors, encoding: str) -> dict[str, Any]:
    values = one.values.numpy().astype("<f4")
    written: Any = values.tolist()
    if encoding == "base64":
        written = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {
        "object": "embedding",
        "index": number,
        "embedding": written,
        "shape": list(values.shape),
    }


def _writable(service: Service) -> Library:
    library = library_of(service)
    if library.shelf.uploads is None:
        raise ServeError(
            "clients may only search this index; start the server with --index-uploads",
            status=403,
            code="index_read_only",
        )
    return library


async def _fields(request: Request, kind: type[Any]) -> Any:
    try:
        return kind.model_validate(read_json(await request.body()), strict=True)
    except ValidationError as error:
        raise validation_error(error, kind) from None
