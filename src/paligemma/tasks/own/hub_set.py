"""Data sets of the hub as rows: `hub:owner/name` or `hub:owner/name@revision` in a path's place."""

from __future__ import annotations

import re
from pathlib import Path

from paligemma.errors import DataError

SCHEME = "hub:"
# As the hub writes names.
_WORD = r"\w(?:[\w.-]{0,94}\w)?"
_NAMED = re.compile(
    rf"hub:/{{0,2}}(?!.*(?:--|\.\.))({_WORD}/{_WORD})(?:@([\w./-]{{1,200}}))?", re.ASCII
)


def is_hub_set(data: str | Path) -> bool:
    """Whether rows are named on the hub, in the place of a path."""
    return str(data).startswith(SCHEME)


def pinned(data: str | Path) -> Path:
    """The name with the commit to which its revision leads now, after the download of its files.

    Raises:
        DataError: no name of a data set, or one without parquet files.
        AccessError: the hub refuses, fails or cannot be reached, and there is no earlier copy.
        ModelNotFoundError: the hub has no such data set or revision.
        MissingExtraError: huggingface_hub is not installed.
    """
    return Path(f"{SCHEME}{_named(data)[0]}@{local_folder(data).name}")


def local_folder(data: str | Path) -> Path:
    """The folder of a data set on this machine; raises as `pinned` does."""
    from paligemma.weights.hub import download_dataset  # imports torch; names of sets need none

    name, revision = _named(data)
    folder = download_dataset(name, revision)
    if not any(folder.rglob("*.parquet")):
        raise DataError(
            f"a data set of the hub is read from its parquet files, {name} has none; choose the "
            f"revision that the hub converts to them, {SCHEME}{name}@refs/convert/parquet, or "
            "download its own files and name their folder"
        )
    return folder


def _named(data: str | Path) -> tuple[str, str | None]:
    found = _NAMED.fullmatch(str(data))
    if found is None:
        raise DataError(
            "a data set of the hub is written hub:owner/name or hub:owner/name@revision, got "
            f"{str(data)!r:.200}"
        )
    return found[1], found[2]
