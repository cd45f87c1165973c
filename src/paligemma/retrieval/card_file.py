"""The card of an index in a folder: `index.json`, which makes a folder an index."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.json_file import read_json
from paligemma.one_writer import LOCK_FILE as WRITER
from paligemma.retrieval.folder_lock import LOCK_FILE as OPEN
from paligemma.retrieval.store import Card
from paligemma.whole_file import write_json

CARD_FILE = "index.json"
SAFETENSORS, EDGE = "safetensors", "edge"
SHARD = "shard"  # the files of Qdrant Edge
# What a process that was killed while it wrote leaves beside what it wrote; `.tmp` of safetensors.
_UNFINISHED = re.compile(
    r"\.(index|shard|pages-\d{8})\.[0-9a-f]{32}(\.json|\.safetensors)?|\.tmp[0-9A-Za-z]{6}"
)


def read_card(folder: Path, kind: str) -> Card | None:
    """The card of a folder; None where there is none yet.

    Args:
        kind: the layout that is expected, `SAFETENSORS` or `EDGE`.

    Raises:
        DataError: it cannot be read, or is of another layout.
    """
    body = _body(folder)
    if body is None:
        return None
    card = Card.from_json(body, str(folder / CARD_FILE))
    if body.get("kind") != kind:
        raise DataError(
            f"{folder} is an index of the layout {body.get('kind')!r:.40}, not {kind!r}; open it "
            f"as {'memory://' if kind == EDGE else ''}{folder}"
        )
    return card


def kind_of(folder: Path) -> str | None:
    """The layout that a folder's card names; None without a card.

    Raises:
        DataError: the card cannot be read.
    """
    body = _body(folder)
    return None if body is None else str(body.get("kind"))[:40]


def holds_others(folder: Path) -> bool:
    """Whether a folder without a card holds anything but what a killed beginning of an index left.

    The files of Edge lie there before the card does, and the lock before both.
    """
    names = {path.name for path in folder.iterdir()}
    begun = {SHARD} if OPEN in names else set()
    left = names - {OPEN, WRITER} - begun
    return any(_UNFINISHED.fullmatch(name) is None for name in left)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left; only for the one that keeps all others out."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) is None:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_card(folder: Path, card: Card, kind: str) -> None:
    """Write the card; from then on the folder is an index."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CARD_FILE, {"kind": kind, **card.as_json()})


def _body(folder: Path) -> dict[str, Any] | None:
    path = folder / CARD_FILE
    try:
        body = read_json(path)
        if not isinstance(body, dict):
            raise ValueError("no JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"the card of an index must be JSON, {path} cannot be read ({str(error)[:200]}); take "
            "it from a copy of the index"
        ) from error
    return body
