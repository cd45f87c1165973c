"""SHA-256 of files, and the hashes their publishers stated."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from paligemma.errors import CheckpointError, ConfigError
from paligemma.whole_file import cache_folder, write_whole

logger = logging.getLogger(__name__)

SUMS_NAME = "SHA256SUMS"
_HEX = re.compile(r"^[0-9a-f]{64}$")
_LINE = re.compile(r"^([0-9a-fA-F]{64}) [ *](.+)$")
_MAX_SUMS_BYTES = 1 << 20


def sha256(path: Path) -> str:
    """Lower-case hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_hub_bytes(paths: Iterable[Path]) -> None:
    """Check files of the hub's cache, which names large ones after their SHA-256.

    A file is read once: a note in the user's cache keeps its size and time of change, and while
    they stay it is not read again.

    Raises:
        CheckpointError: a file differs from what the hub states.
    """
    for path in paths:
        blob = path.resolve()
        if not path.is_symlink() or not _HEX.match(blob.name):
            continue
        facts = blob.stat()
        seal = f"{facts.st_size} {facts.st_mtime_ns}"
        note = cache_folder() / "verified" / f"{blob.name}-{facts.st_dev}-{facts.st_ino}"
        if note.is_file() and note.read_text(errors="replace") == seal:
            continue
        digest = sha256(blob)
        if digest != blob.name:
            raise CheckpointError(
                f"a file of the hub must have the bytes that it states, {path} has SHA-256 "
                f"{digest} instead of {blob.name}; delete {blob} and load the model again"
            )
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, [seal])
        except (OSError, ConfigError) as error:
            logger.info("%s will be read again next time: %s", path.name, error)


def stated_hashes(folder: Path, paths: Iterable[Path]) -> dict[Path, tuple[str, str]]:
    """Hashes known for some of the files: path -> (hex digest, who states it).

    Known are a SHA256SUMS file in the folder, the hub's cache, which names large files after their
    hash, and the metadata it keeps beside files downloaded into a folder.
    """
    sums = _read_sums(folder / SUMS_NAME)
    found = {}
    for path in paths:
        blob = path.resolve().name
        beside = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
        if path.name in sums:
            found[path] = (sums[path.name], SUMS_NAME)
        elif path.is_symlink() and _HEX.match(blob):
            found[path] = (blob, "the hub")
        elif beside.is_file() and (etag := _etag(beside)) is not None:
            found[path] = (etag, "the hub")
    return found


def _read_sums(path: Path) -> dict[str, str]:
    if not path.is_file() or path.stat().st_size > _MAX_SUMS_BYTES:
        return {}
    lines = (_LINE.match(line) for line in path.read_text(errors="replace").splitlines())
    return {match[2]: match[1].lower() for match in lines if match}


def _etag(path: Path) -> str | None:
    """Second line of the hub's metadata: the SHA-256 of large files, something else of small."""
    lines = path.read_text(errors="replace")[:4096].splitlines()
    return lines[1] if len(lines) > 1 and _HEX.match(lines[1]) else None
