"""An index in memory, and, where it has a folder, in safetensors files: exact, and the measure.

A folder holds `index.json` and `pages-<number>.safetensors`, one file for each `put`. A page that
stands in several files is that of the last one, so nothing is ever changed in place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from paligemma.errors import CheckpointError, ConfigError, DataError, RunError
from paligemma.json_file import parse_json
from paligemma.one_writer import one_writer
from paligemma.retrieval.card_file import SAFETENSORS, read_card, remove_unfinished, write_card
from paligemma.retrieval.scores import max_sim
from paligemma.retrieval.store import (
    MAX_FAULTS,
    MAX_VECTORS,
    Card,
    Entry,
    Found,
    Half,
    Payload,
    best,
    entry_faults,
    without_thumbnail,
)
from paligemma.weights.safetensors_file import open_safetensors
from paligemma.whole_file import staging_folder, whole_file

_SHARD = re.compile(r"pages-(\d{8})\.safetensors")
_CHUNK = 128  # pages of a file of a snapshot


class MemoryStore:
    """Pages in memory, written through to a folder if there is one.

    Args:
        folder: where they are kept; None keeps them nowhere else.

    Raises:
        DataError: files of the folder are damaged.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._card = None if folder is None else read_card(folder, SAFETENSORS)
        self._entries: dict[str, Entry] = {}
        self._shard_of: dict[str, int] = {}
        self._last_shard = 0
        self._lock = ExitStack()
        self._is_writing = False
        for number, path in self._shards():
            for entry in _read_shard(path, self._dim):
                self._entries[entry.id], self._shard_of[entry.id] = entry, number
            self._last_shard = number

    @property
    def _dim(self) -> int:
        return 0 if self._card is None else self._card.dim

    @property
    def card(self) -> Card | None:
        """See `Store`."""
        return self._card

    def bind(self, card: Card) -> None:
        """See `Store`."""
        if self._folder is not None:
            self._begin_writing()
            found = read_card(self._folder, SAFETENSORS)
            if found is not None:  # another process was first
                self._card = found
                return
            write_card(self._folder, card, SAFETENSORS)
        self._card = card

    def put(self, entries: Sequence[Entry]) -> None:
        """See `Store`."""
        if not entries:
            return
        if self._folder is not None:
            self._begin_writing()
            self._last_shard += 1
            _write_shard(self._path(self._last_shard), entries)
        for entry in entries:
            self._entries[entry.id], self._shard_of[entry.id] = entry, self._last_shard

    def drop(self, ids: Sequence[str]) -> None:
        """See `Store`."""
        gone = set(ids) & self._entries.keys()
        if self._folder is not None and gone:
            self._begin_writing()
            for _, path in self._shards():
                # An older copy of a page would come back, were only the last one dropped.
                kept = _read_shard(path, self._dim)
                if gone & {entry.id for entry in kept}:
                    left = [entry for entry in kept if entry.id not in gone]
                    _write_shard(path, left) if left else path.unlink()
        for one in gone:
            del self._entries[one], self._shard_of[one]

    def nearest(self, query: Half, k: int, rerank: int | None) -> list[Found]:
        """See `Store`."""
        entries = list(self._entries.values())
        if rerank is not None and rerank < len(entries):
            by_centres = _scores(query, [entry.centres for entry in entries])
            first = sorted(range(len(entries)), key=lambda i: (-by_centres[i], entries[i].id))
            entries = [entries[i] for i in first[: max(rerank, k)]]
        scores = _scores(query, [entry.values for entry in entries])
        return best(
            (
                Found(id=entry.id, score=score, payload=entry.payload)
                for entry, score in zip(entries, scores, strict=True)
            ),
            k,
        )

    def get(self, ids: Sequence[str]) -> list[Entry]:
        """See `Store`."""
        return [self._entries[one] for one in ids if one in self._entries]

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """See `Store`."""
        for entry in list(self._entries.values()):
            yield entry.id, without_thumbnail(entry.payload)

    def count(self) -> int:
        """See `Store`."""
        return len(self._entries)

    def faults(self) -> list[str]:
        """See `Store`."""
        found: list[str] = []
        for _, path in self._shards():
            try:
                for entry in _read_shard(path, self._dim):
                    found += entry_faults(entry, self._dim)
            except DataError as error:
                found.append(str(error))
        return found[:MAX_FAULTS]

    def snapshot(self, target: str) -> None:
        """See `Store`."""
        place = Path(target)
        if place.exists():
            raise ConfigError(f"a snapshot goes to a new folder, {target!r:.200} is there")
        if self._card is None:
            raise ConfigError("an index without pages has nothing to copy; add pages first")
        with staging_folder(place) as staging:
            write_card(staging, self._card, SAFETENSORS)
            entries = list(self._entries.values())
            for start in range(0, len(entries), _CHUNK):
                number = start // _CHUNK + 1
                _write_shard(
                    staging / f"pages-{number:08}.safetensors", entries[start : start + _CHUNK]
                )
            staging.rename(place)

    def close(self) -> None:
        """See `Store`."""
        self._lock.close()
        self._is_writing = False

    def _begin_writing(self) -> None:
        """Keep other writers out, from the first change on."""
        if self._folder is not None and not self._is_writing:
            self._lock.enter_context(one_writer(self._folder))
            self._is_writing = True
            remove_unfinished(self._folder)
            last = max((number for number, _ in self._shards()), default=0)
            if last > self._last_shard:
                self.close()
                raise ConfigError(
                    f"the index {self._folder} was changed since it was opened; open it again"
                )

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"pages-{number:08}.safetensors"

    def _shards(self) -> list[tuple[int, Path]]:
        if self._folder is None or not self._folder.is_dir():
            return []
        named = [(path, _SHARD.fullmatch(path.name)) for path in self._folder.iterdir()]
        return sorted((int(match[1]), path) for path, match in named if match)


def _scores(query: Half, pages: Sequence[Half]) -> list[float]:
    wide = torch.from_numpy(query.astype(np.float32))
    return max_sim(wide, [torch.from_numpy(page) for page in pages]).tolist()


def _write_shard(path: Path, entries: Sequence[Entry]) -> None:
    """Write a file of pages.

    Raises:
        RunError: the disk is full, or refuses.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    rows = {
        "values": np.concatenate([entry.values for entry in entries]),
        "centres": np.concatenate([entry.centres for entry in entries]),
    }
    about = [
        {
            "id": entry.id,
            "lengths": [len(entry.values), len(entry.centres)],
            "payload": dict(entry.payload),
        }
        for entry in entries
    ]
    try:
        with whole_file(path, sync=True) as partial:
            save_file(rows, partial, {"pages": json.dumps(about, allow_nan=False)})
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"an index needs a folder with room that can be written, {path.parent} refuses "
            f"({str(error)[:200]}); make room, and run it again"
        ) from error


def _read_shard(path: Path, dim: int) -> list[Entry]:
    """The pages of a file, mapped.

    Raises:
        DataError: it is damaged, or not of this index.
    """
    try:
        with open_safetensors(path) as file:
            about = parse_json((file.metadata() or {}).get("pages", "null"))
            values, rows = file.get_tensor("values"), file.get_tensor("centres")
        lengths = [[int(n) for n in one["lengths"]] for one in about]
        fits = all(1 <= n <= MAX_VECTORS for pair in lengths for n in pair) and all(
            part.dtype == torch.float16 and part.shape == (sum(pair), dim)
            for part, pair in zip((values, rows), zip(*lengths, strict=True), strict=True)
        )
        if not fits:
            raise ValueError("shapes and card differ")
        parts = zip(
            about,
            values.split([pair[0] for pair in lengths]),
            rows.split([pair[1] for pair in lengths]),
            strict=True,
        )
        return [
            Entry(
                id=str(one["id"]),
                values=part.numpy(),
                centres=pooled.numpy(),
                payload=dict(one["payload"]),
            )
            for one, part, pooled in parts
        ]
    except (CheckpointError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"a file of an index must be whole, {path} is not ({str(error)[:200]}); remove it, and "
            "add its pages again"
        ) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise DataError(f"a file of an index must be whole, {path} lacks tensors") from error
