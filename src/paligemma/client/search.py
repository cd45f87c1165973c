"""A server's index of pages: searched, and pages added to it."""

from __future__ import annotations

import base64
import binascii
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paligemma.client.pictures import read_bytes
from paligemma.errors import ConfigError, RunError
from paligemma.processing.image import ImageSource


@dataclass(frozen=True, kw_only=True)
class FoundPage:
    """A page of a server's index.

    Attributes:
        id: "sha256:page".
        score: late-interaction score.
        file: name of its file.
        page: number in the file, from 1.
        size_wh: width and height in pixels of the picture that the model read.
        text: start of the page's own text, where its file has some.
        words: each word of the query, and what it adds to the score.
        thumbnail: a small picture of the page.
        heat: a PNG with transparency of each word, in the order of `words`, a pixel a patch.
        answer: what a model read on the page, where it was asked.
    """

    id: str
    score: float
    file: str
    page: int
    size_wh: tuple[int, int]
    text: str
    words: tuple[tuple[str, float], ...]
    thumbnail: bytes | None = None
    heat: tuple[bytes, ...] = ()
    answer: str | None = None


class SearchMethods(ABC):
    """What a client of a server with an index can ask."""

    _model: str | None

    @abstractmethod
    def _call(self, path: str, fields: Mapping[str, Any] | None) -> Any:
        """The JSON that the server answers; fields of None ask with GET."""

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        heat: bool = False,
        thumbnails: bool = True,
        answers: int = 0,
    ) -> list[FoundPage]:
        """The k pages of the server's index that match a query best, the best first.

        Args:
            heat: whether pages come with the heat of each word.
            thumbnails: whether they come with a small picture.
            answers: how many of the best pages the client's model reads, to answer the query from
                each.

        Raises:
            ConfigError: a field that is wrong, or a server without an index.
            RunError: the server does not answer.
        """
        fields = {"query": query, "k": k, "heat": heat, "thumbnails": thumbnails}
        if answers:
            fields |= {"answers": answers, "model": self._model}
        body = self._call("/v1/search", fields)
        return _read(lambda: [_found(one) for one in body["hits"]])

    def index_facts(self) -> Mapping[str, Any]:
        """Name, model, width of vectors and number of pages of the server's index."""
        found = self._call("/v1/index", None)
        return _read(lambda: dict(found))

    def add_pages(self, paths: Iterable[str | os.PathLike[str]]) -> list[str]:
        """Add PDFs and pictures to the server's index, where clients may.

        Returns:
            A sentence for each file or page that could not be read.

        Raises:
            ConfigError: a file that is missing, two of one name, or an index that clients may only
                search.
        """
        files: dict[str, str] = {}
        for path in map(Path, paths):
            if path.name in files:
                raise ConfigError(
                    f"files of one call have names of their own, got two {path.name!r:.200}; add "
                    "them one after the other"
                )
            try:
                files[path.name] = base64.b64encode(path.read_bytes()).decode()
            except OSError as error:
                raise ConfigError(
                    f"a file must be there to be added, {str(path)!r:.300} cannot be read "
                    f"({error.strerror}); check the path"
                ) from None
        body = self._call("/v1/index", {"files": files})
        return _read(lambda: [str(one) for one in body["faults"]])

    def remove_pages(self, ids: Sequence[str]) -> None:
        """Take pages out of the server's index, where clients may."""
        self._call("/v1/index/remove", {"ids": list(ids)})

    def embed_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """float32[N, D] of each text, a row of unit length for each of its N tokens."""
        return self._embedded({"input": list(texts)})

    def embed_pages(self, pictures: Sequence[ImageSource]) -> list[NDArray[np.float32]]:
        """float32[N, D] of each page, those of its patches first, row by row."""
        images = [base64.b64encode(read_bytes(one)).decode() for one in pictures]
        return self._embedded({"images": images})

    def _embedded(self, fields: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        body = self._call("/v1/embeddings", {**fields, "encoding_format": "base64"})
        return _read(
            lambda: [
                np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
                .reshape(one["shape"])
                .astype(np.float32)
                for one in body["data"]
            ]
        )


def _found(one: Mapping[str, Any]) -> FoundPage:
    heat = one["heat"] or {"words": ()}
    return FoundPage(
        id=str(one["id"]),
        score=float(one["score"]),
        file=str(one["file"]),
        page=int(one["page"]),
        size_wh=(int(one["width"]), int(one["height"])),
        text=str(one["text"]),
        words=tuple((str(word["word"]), float(word["score"])) for word in one["words"]),
        thumbnail=None if one["thumbnail"] is None else _bytes_of(one["thumbnail"]),
        heat=tuple(map(_bytes_of, heat["words"])),
        answer=None if one.get("answer") is None else str(one["answer"]),
    )


def _bytes_of(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2], validate=True)


def _read(make: Any) -> Any:
    """What is made of a body that another program wrote.

    Raises:
        RunError: it lacks what an answer has.
    """
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise RunError(f"the server's answer lacks what it should have: {error!r:.200}") from None
