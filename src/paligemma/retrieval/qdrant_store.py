"""An index on a Qdrant server or cluster: a collection with the same vectors as in a folder.

The card lies in the collection's metadata. Only servers are connected to: the client's own local
mode keeps points as pickle, and nothing of it is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from paligemma.errors import ConfigError, DataError, MissingExtraError, RunError
from paligemma.retrieval.store import (
    CENTRES,
    PAGE,
    THUMBNAIL,
    Card,
    Entry,
    Found,
    Half,
    Payload,
    best_with_ties,
    faults_of,
    found_of,
    half_of,
    page_id_of,
    point_id,
)

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

Result = TypeVar("Result")

_URL = re.compile(r"qdrant://([\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})/([\w.-]{1,255})(\?tls)?")
_KEY = "QDRANT_API_KEY"
_CARD = "paligemma"
_TIMEOUT_S = 60
_BATCH = 256
_PUT = 16  # pages sent at once: some 8 MB


class QdrantStore:
    """Pages in a collection.

    Args:
        client: connected to a server.
        collection: its name; made by `bind` if it is not there.

    Raises:
        DataError: the collection is there, and is no index of this program.
        RunError: the server does not answer.
    """

    def __init__(self, client: QdrantClient, collection: str) -> None:
        self._client, self._name = client, collection
        self._card = None
        if _asked(lambda: client.collection_exists(collection)):
            config = _asked(lambda: client.get_collection(collection)).config
            body = (getattr(config, "metadata", None) or {}).get(_CARD)
            self._card = Card.from_json(body, f"the collection {collection}")

    @classmethod
    def connect(cls, url: str) -> QdrantStore:
        """The store of a name "qdrant://HOST:PORT/COLLECTION"; "?tls" at its end encrypts.

        The key of a server that asks for one is taken from QDRANT_API_KEY.

        Raises:
            ConfigError: a name that is none.
            MissingExtraError: qdrant-client is not installed.
        """
        match = _URL.fullmatch(url)
        if match is None or not 0 < int(match[2]) < 65_536:
            raise ConfigError(
                "an index on a server is named qdrant://HOST:PORT/COLLECTION, with ?tls at its end "
                f"for HTTPS, got {url!r:.200}"
            )
        try:
            from qdrant_client import QdrantClient
        except ImportError as error:
            raise MissingExtraError(
                "an index on a server needs qdrant-client; install it with pip install "
                "'paligemma[retrieval]'"
            ) from error
        client = QdrantClient(
            host=match[1].strip("[]"),
            port=int(match[2]),
            https=match[4] is not None,
            api_key=os.environ.get(_KEY) or None,
            timeout=_TIMEOUT_S,
            check_compatibility=False,
        )
        return cls(client, match[3])

    @property
    def card(self) -> Card | None:
        """See `Store`."""
        return self._card

    def bind(self, card: Card) -> None:
        """See `Store`."""
        from qdrant_client import models

        def params(*, on_disk: bool, hnsw: models.HnswConfigDiff | None) -> models.VectorParams:
            return models.VectorParams(
                size=card.dim,
                distance=models.Distance.DOT,
                datatype=models.Datatype.FLOAT16,
                multivector_config=models.MultiVectorConfig(
                    comparator=models.MultiVectorComparator.MAX_SIM
                ),
                on_disk=on_disk,
                hnsw_config=hnsw,
            )

        # All vectors are only ever compared with chosen pages; the centres choose them.
        vectors = {
            PAGE: params(on_disk=True, hnsw=models.HnswConfigDiff(m=0)),
            CENTRES: params(on_disk=False, hnsw=None),
        }
        _asked(
            lambda: self._client.create_collection(
                self._name, vectors_config=vectors, metadata={_CARD: card.as_json()}
            )
        )
        self._card = card

    def put(self, entries: Sequence[Entry]) -> None:
        """See `Store`."""
        from qdrant_client import models

        for start in range(0, len(entries), _PUT):
            points = [
                models.PointStruct(
                    id=point_id(entry.id),
                    vector={PAGE: entry.values.tolist(), CENTRES: entry.centres.tolist()},
                    payload={"id": entry.id, **entry.payload},
                )
                for entry in entries[start : start + _PUT]
            ]
            _asked(partial(self._client.upsert, self._name, points, wait=True))

    def drop(self, ids: Sequence[str]) -> None:
        """See `Store`."""
        from qdrant_client import models

        if ids and self._card is not None:
            chosen = models.PointIdsList(points=[point_id(one) for one in ids])
            _asked(lambda: self._client.delete(self._name, chosen, wait=True))

    def nearest(self, query: Half, k: int, rerank: int | None) -> list[Found]:
        """See `Store`."""
        from qdrant_client import models

        vectors: Any = query.tolist()
        first = None
        if rerank is not None:
            first = models.Prefetch(query=vectors, using=CENTRES, limit=max(rerank, k))

        def ask(limit: int) -> list[Found]:
            answer = _asked(
                lambda: self._client.query_points(
                    self._name,
                    query=vectors,
                    using=PAGE,
                    prefetch=first,
                    limit=limit,
                    with_payload=True,
                )
            )
            return [found_of(point) for point in answer.points]

        return best_with_ties(ask, k)

    def get(self, ids: Sequence[str]) -> list[Entry]:
        """See `Store`."""
        if self._card is None or not ids:
            return []
        records = _asked(
            lambda: self._client.retrieve(
                self._name, [point_id(one) for one in ids], with_payload=True, with_vectors=True
            )
        )
        found = {}
        for record in records:
            page_id, payload = page_id_of(record.payload)
            vectors: Any = record.vector or {}
            found[page_id] = Entry(
                id=page_id,
                values=half_of(vectors.get(PAGE)),
                centres=half_of(vectors.get(CENTRES)),
                payload=payload,
            )
        return [found[one] for one in ids if one in found]

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """See `Store`."""
        from qdrant_client import models

        offset: Any = None
        shown = models.PayloadSelectorExclude(exclude=[THUMBNAIL])
        while self._card is not None:
            scroll = partial(self._client.scroll, self._name, limit=_BATCH, with_payload=shown)
            records, offset = _asked(partial(scroll, offset=offset))
            for record in records:
                yield page_id_of(record.payload)
            if offset is None:
                return

    def count(self) -> int:
        """See `Store`."""
        return 0 if self._card is None else _asked(lambda: self._client.count(self._name)).count

    def faults(self) -> list[str]:
        """See `Store`."""
        return faults_of(self, self._card)

    def snapshot(self, target: str) -> None:
        """A server keeps its own snapshots.

        Raises:
            ConfigError: always; it names what the server does.
        """
        raise ConfigError(
            "a snapshot of a collection is made by its server: POST "
            f"/collections/{self._name}/snapshots, which Qdrant's documentation describes"
        )

    def close(self) -> None:
        """See `Store`."""


def _asked(ask: Callable[[], Result]) -> Result:
    """The server's answer.

    Raises:
        RunError: there is none.
        DataError: the server refuses.
    """
    try:
        return ask()
    except Exception as error:
        kind = type(error).__name__
        if kind == "UnexpectedResponse":
            raise DataError(f"the Qdrant server refused: {str(error)[:300]}") from error
        if kind in ("ResponseHandlingException", "ResourceExhaustedResponse"):
            raise RunError(
                f"the Qdrant server does not answer ({str(error)[:200]}); see whether it runs"
            ) from error
        raise
