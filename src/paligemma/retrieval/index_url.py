"""From the name of an index to the store that keeps it."""

from __future__ import annotations

from pathlib import Path

from paligemma.errors import ConfigError
from paligemma.retrieval.card_file import SAFETENSORS, holds_others, kind_of
from paligemma.retrieval.edge_store import EdgeStore
from paligemma.retrieval.memory_store import MemoryStore
from paligemma.retrieval.store import Store

MEMORY, QDRANT = "memory://", "qdrant://"


def open_store(name: str, *, create: bool) -> Store:
    """Open a store, or begin one.

    Args:
        name: "memory://", "memory://FOLDER", "FOLDER" or "qdrant://HOST:PORT/COLLECTION".
        create: whether one that is not there is to be begun, which decides what a folder of other
            files is told.

    Raises:
        ConfigError: a name that is none.
        DataError: files of the index are damaged.
        MissingExtraError: what keeps it is not installed.
    """
    if name.startswith(MEMORY):
        place = name.removeprefix(MEMORY)
        return MemoryStore(_folder(place, create=create) if place else None)
    if name.startswith(QDRANT):
        from paligemma.retrieval.qdrant_store import QdrantStore

        return QdrantStore.connect(name)
    if "://" in name:
        raise ConfigError(
            f"an index is a folder, memory:// or qdrant://HOST:PORT/COLLECTION, got {name!r:.200}"
        )
    folder = _folder(name, create=create)
    return MemoryStore(folder) if kind_of(folder) == SAFETENSORS else EdgeStore(folder)


def _folder(name: str, *, create: bool) -> Path:
    folder = Path(name)
    if not name or "\0" in name:
        raise ConfigError("the name of an index is not empty; name a folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"an index is a folder, {name!r:.300} is a file; name another")
    if folder.is_dir() and kind_of(folder) is None and holds_others(folder):
        if not create:
            raise ConfigError(
                f"no index is at {name!r:.300}, a folder of other files; name an index"
            )
        raise ConfigError(
            f"a new index begins in a new or empty folder, {name!r:.300} holds other files; name "
            "another"
        )
    return folder
