"""A repository of the hub as a plain folder: whole or not at all, resumed where it was cut off."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import AccessError, ConfigError, PaliGemmaError
from paligemma.export.hub_files import (
    MAX_FILES,
    RUNS_CODE,
    require_hub,
    require_id,
    require_safe,
)
from paligemma.weights.hub import explain_download
from paligemma.whole_file import require_writable

_LEFT_OUT = (".gitattributes", ".gitignore")
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Listed:
    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull brought.

    Attributes:
        commit: the state of the repository.
        num_files, num_bytes: of the folder.
        left: names of files that were left there because opening them runs code.
    """

    commit: str
    num_files: int
    num_bytes: int
    left: tuple[str, ...]


def pull(hub_id: str, folder: Path, *, revision: str | None = None) -> Pulled:
    """Download a repository into a new folder.

    What arrives lies in FOLDER.part until all is there and has the size and, for large files, the
    SHA-256 that the hub states; the same call goes on with it.

    Args:
        revision: branch, tag or commit; None is the main branch.

    Raises:
        ConfigError: the folder exists, cannot be written or has no room, or the name is none.
        AccessError: the hub refuses, fails, cannot be reached, or sent other bytes.
        ModelNotFoundError: no such repository or revision.
        MissingExtraError: huggingface_hub is not installed.
    """
    require_id(hub_id)
    require_hub()
    if os.path.lexists(folder):
        raise ConfigError(
            f"a pull goes to a folder that is not there yet, got {str(folder)!r:.200}; name another"
        )
    part = folder.with_name(f"{folder.name}.part")
    require_writable(Path(os.path.abspath(folder)).parent)
    try:
        commit, listed = _listing(hub_id, revision)
        left = [one.name for one in listed if one.name.lower().endswith(RUNS_CODE)]
        wanted = [one for one in listed if one.name not in left and one.name not in _LEFT_OUT]
        _require_room(part, wanted)
        _download(hub_id, commit, part)
    except PaliGemmaError:
        raise
    # What the library raises depends on its version and on whoever answers in the hub's place.
    except Exception as error:
        raise explain_download(error, hub_id, revision) from error
    _require_bytes(hub_id, part, wanted)
    _remove_others(part, {one.name for one in wanted})
    part.replace(folder)
    num_bytes = sum((folder / one.name).stat().st_size for one in wanted)
    return Pulled(commit=commit, num_files=len(wanted), num_bytes=num_bytes, left=tuple(left))


def _listing(hub_id: str, revision: str | None) -> tuple[str, list[_Listed]]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    siblings = info.siblings or []
    if not info.sha or not siblings:
        raise AccessError(f"a repository to pull has files, {hub_id} has none")
    if len(siblings) > MAX_FILES:
        raise AccessError(f"a repository has at most {MAX_FILES:,} files, {hub_id} has more")
    listed = []
    for one in siblings:
        require_safe(one.rfilename)
        sha256 = None if one.lfs is None else one.lfs.sha256
        listed.append(_Listed(name=one.rfilename, size=one.size, sha256=sha256))
    return info.sha, listed


def _require_room(part: Path, wanted: list[_Listed]) -> None:
    there = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    needed = sum(one.size or 0 for one in wanted) - there
    free = shutil.disk_usage(Path(os.path.abspath(part)).parent).free
    if needed > free:
        raise ConfigError(
            f"{needed / 1e9:,.1f} GB more need room, the disk has {free / 1e9:,.1f} GB; "
            "make room, or name a folder on another disk"
        )


def _download(hub_id: str, commit: str, part: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(
        hub_id,
        revision=commit,
        local_dir=part,
        ignore_patterns=[*(f"*{ending}" for ending in RUNS_CODE), *_LEFT_OUT],
        max_workers=2,
    )


def _require_bytes(hub_id: str, part: Path, wanted: list[_Listed]) -> None:
    for one in wanted:
        path = part / one.name
        found = path.stat().st_size if path.is_file() else None
        is_whole = found is not None and one.size in (None, found)
        if is_whole and one.sha256 is not None:
            is_whole = _sha256(path) == one.sha256
        if not is_whole:
            path.unlink(missing_ok=True)
            raise AccessError(
                f"{one.name} of {hub_id} did not arrive as the hub has it; run the same command "
                "again, complete files are kept"
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _remove_others(part: Path, names: set[str]) -> None:
    """The library's notes, and files of an earlier state of the repository."""
    shutil.rmtree(part / ".cache", ignore_errors=True)
    for path in part.rglob("*"):
        if path.is_file() and path.relative_to(part).as_posix() not in names:
            path.unlink()
