"""An index in a folder, kept by Qdrant Edge: the engine of the Qdrant server, embedded.

The folder holds `index.json` and `shard/`. Edge is in beta, so all that touches it stands here.
There is no write-ahead log: `put` returns after a flush, which is when its pages are kept, and a
page that is written twice has one id. Several processes may read, or one may write (`folder_lock`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.errors import ConfigError, DataError, MissingExtraError, RunError
from paligemma.retrieval.card_file import EDGE, SHARD, read_card, remove_unfinished, write_card
from paligemma.retrieval.folder_lock import FolderLock
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
    each_few,
    faults_of,
    found_of,
    half_of,
    page_id_of,
    point_id,
)
from paligemma.whole_file import staging_folder

if TYPE_CHECKING:
    from qdrant_edge import EdgeShard

_ROOM = 8 << 20  # left free by whatever is written, bytes
_BATCH = 256  # pages whose payloads are read at once


class EdgeStore:
    """Pages in a folder.

    Raises:
        MissingExtraError: qdrant-edge-py is not installed.
        DataError: files of the folder are damaged.
        ConfigError: another process writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self._edge = _edge()
        self._folder = folder
        self._lock: FolderLock | None = None
        self._is_writing = False
        self._shard: EdgeShard | None = None
        self._card = read_card(folder, EDGE)
        if self._card is not None:
            self._begin_reading()

    @property
    def card(self) -> Card | None:
        """See `Store`."""
        return self._card

    def bind(self, card: Card) -> None:
        """See `Store`."""
        self._begin_writing()
        if self._card is not None:  # another process was first
            return
        shard = self._folder / SHARD
        if shard.is_dir():
            self._remove_begun(shard)
        with staging_folder(shard) as staging:
            _require_room(self._folder, ())
            with self._whole():
                self._edge.EdgeShard.create(str(staging), self._config(card.dim)).close()
            staging.rename(shard)
        write_card(self._folder, card, EDGE)
        self._card, self._shard = card, self._load()

    def put(self, entries: Sequence[Entry]) -> None:
        """See `Store`."""
        if not entries:
            return
        self._begin_writing()
        points = [
            self._edge.Point(
                point_id(entry.id),
                {PAGE: entry.values.astype(np.float32), CENTRES: entry.centres.astype(np.float32)},
                {"id": entry.id, **entry.payload},
            )
            for entry in entries
        ]
        _require_room(self._folder, entries)
        with self._whole():
            self._opened.update(self._edge.UpdateOperation.upsert_points(points))
            self._opened.flush()

    def drop(self, ids: Sequence[str]) -> None:
        """See `Store`."""
        if ids and self._shard is not None:
            self._begin_writing()
            points = [point_id(one) for one in ids]
            _require_room(self._folder, ())
            with self._whole():
                self._opened.update(self._edge.UpdateOperation.delete_points(points))
                self._opened.flush()

    def nearest(self, query: Half, k: int, rerank: int | None) -> list[Found]:
        """See `Store`."""
        if self._shard is None or not self.count():
            return []
        edge, vectors = self._edge, query.astype(np.float32)
        prefetches = None
        if rerank is not None:
            by_centres = edge.Query.Nearest(vectors, using=CENTRES)
            prefetches = [edge.Prefetch(limit=max(rerank, k), query=by_centres)]

        def ask(limit: int) -> list[Found]:
            request = edge.QueryRequest(
                limit=limit,
                query=edge.Query.Nearest(vectors, using=PAGE),
                prefetches=prefetches,
                with_payload=True,
            )
            with self._whole():
                points = self._opened.query(request)
            return [found_of(point) for point in points]

        return best_with_ties(ask, k)

    def get(self, ids: Sequence[str]) -> list[Entry]:
        """See `Store`."""
        if self._shard is None or not ids:
            return []
        wanted: list[Any] = [point_id(one) for one in ids]
        with self._whole():
            records = self._opened.retrieve(wanted, with_payload=True, with_vector=[PAGE, CENTRES])
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
        offset, shown = None, self._edge.PayloadSelector.Exclude([THUMBNAIL])
        while self._shard is not None:
            request = self._edge.ScrollRequest(offset=offset, limit=_BATCH, with_payload=shown)
            with self._whole():
                records, offset = self._opened.scroll(request)
            for record in records:
                yield page_id_of(record.payload)
            if offset is None:
                return

    def count(self) -> int:
        """See `Store`."""
        if self._shard is None:
            return 0
        with self._whole():
            return int(self._opened.count(self._edge.CountRequest()))

    def faults(self) -> list[str]:
        """See `Store`."""
        return faults_of(self, self._card)

    def snapshot(self, target: str) -> None:
        """See `Store`."""
        place = Path(target)
        if place.exists():
            raise ConfigError(f"a snapshot goes to a new folder, {target!r:.200} is there")
        if self._card is None:
            raise ConfigError("an index without pages has nothing to copy; add pages first")
        with staging_folder(place) as staging:
            copy = EdgeStore(staging)
            copy.bind(self._card)
            for few in each_few(self):
                copy.put(few)
            copy.close()
            staging.rename(place)

    def close(self) -> None:
        """See `Store`."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._is_writing = False

    @property
    def _opened(self) -> EdgeShard:
        if self._shard is None:
            raise ConfigError(f"the index {self._folder} is closed; open it again")
        return self._shard

    def _begin_reading(self) -> None:
        """Open the files: alone if nobody else has them open, since opening may repair them."""
        self._lock = self._lock or FolderLock(self._folder)
        is_first = self._lock.alone(wait_s=0)
        if not is_first and not self._lock.together():
            self.close()
            raise self._taken("is writing to")
        try:
            self._shard = self._load()
        except DataError:
            self.close()
            raise
        if is_first:
            self._lock.together()

    def _begin_writing(self) -> None:
        """Keep others out, from the first change on."""
        if self._is_writing:
            return
        self._lock = self._lock or FolderLock(self._folder)
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        self._is_writing = self._lock.alone()
        if not self._is_writing:
            if self._card is not None:
                self._begin_reading()
            raise self._taken("has opened")
        remove_unfinished(self._folder)
        self._card = read_card(self._folder, EDGE)
        if self._card is not None:
            self._shard = self._load()

    def _remove_begun(self, shard: Path) -> None:
        """Remove files whose card was not written before the process was killed; no page is there.

        Raises:
            DataError: pages are there, so it is the card that was lost.
        """
        begun = self._load()
        count = int(begun.count(self._edge.CountRequest()))
        begun.close()
        if count:
            raise DataError(
                f"{self._folder} has {count} pages and no card; take index.json from a copy of the "
                "index"
            )
        shutil.rmtree(shard)

    def _taken(self, what: str) -> ConfigError:
        return ConfigError(
            f"another process {what} {self._folder}; wait for its end, or work through it, if it "
            "is a server"
        )

    def _load(self) -> EdgeShard:
        with self._whole():
            return self._edge.EdgeShard.load(str(self._folder / SHARD))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Say in a sentence what Edge raises on damaged files; its panics are no `Exception`.

        Raises:
            DataError: it raised.
        """
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(
                f"the files of an index must be whole, Edge cannot use {self._folder / SHARD} "
                f"({str(error)[:300]}); take them from a snapshot, or make the index again"
            ) from error

    def _config(self, dim: int) -> Any:
        edge = self._edge
        params = edge.EdgeVectorParams(
            dim,
            edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=edge.VectorStorageDatatype.Float16,
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10_000),
        )
        return edge.EdgeConfig(vectors={PAGE: params, CENTRES: params}, wal_enabled=False)


def _require_room(folder: Path, entries: Sequence[Entry]) -> None:
    """Refuse to write to a full disk: Edge maps its files, and the kernel would end the process.

    Raises:
        RunError: there is not room enough.
    """
    wanted = _ROOM
    for entry in entries:
        texts = sum(len(value) for value in entry.payload.values() if isinstance(value, str))
        wanted += 2 * (entry.values.nbytes + entry.centres.nbytes + 4 * texts)
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < wanted:
        raise RunError(
            f"an index needs room on its disk, {folder} has {disk.free >> 20} MB left of the "
            f"{(wanted >> 20) + 1} MB that this takes; make room, and run it again"
        )


def _edge() -> Any:
    try:
        import qdrant_edge
    except ImportError as error:
        raise MissingExtraError(
            "an index in a folder is kept by Qdrant Edge; install it with pip install "
            "'paligemma[retrieval]', or name the index memory://FOLDER, which needs nothing"
        ) from error
    return qdrant_edge
