"""A repository of the hub as a plain folder: whole or not at all, resumed where it was cut off."""

from __future__ import annotations

import glob
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
from paligemma.one_writer import one_writer
from paligemma.weights.hub import explain_download
from paligemma.whole_file import require_writable

_LEFT_OUT = (".gitattributes", ".gitignore")
_BLOCK = 1 << 20
# Where the library notes what arrived, in the folder itself.
_NOTES = Path(".cache", "huggingface")


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A file of the hub. Git hashes small files itself; of large ones it has a pointer."""

    name: str
    size: int | None
    sha256: str | None
    git_sha1: str | None


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

    What arrives lies in FOLDER.part until all is there and has the size and the hash that the hub
    states (SHA-256 of large files, git's of small ones); the same call goes on with it.

    Args:
        revision: branch, tag or commit; None is the main branch.

    Raises:
        ConfigError: the folder exists, cannot be written, has no room or is being pulled by another
            process, FOLDER.part is not of a pull, or the name is none.
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
    folder = Path(os.path.abspath(folder))
    require_writable(folder.parent)
    part = folder.with_name(f"{folder.name}.part")
    with one_writer(part.parent, part.name):
        return _pull(hub_id, folder, part, revision)


def _pull(hub_id: str, folder: Path, part: Path, revision: str | None) -> Pulled:
    _require_own(part)
    try:
        commit, listed = _listing(hub_id, revision)
        left = [one.name for one in listed if one.name.lower().endswith(RUNS_CODE)]
        wanted = [one for one in listed if one.name not in left and not _is_of_tools(one.name)]
        if not wanted:
            raise AccessError(
                f"a repository to pull has files that run no code, {hub_id} has {len(left)} that do"
            )
        _require_room(part, wanted)
        _download(hub_id, commit, part, wanted)
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
        listed.append(
            _Listed(
                name=one.rfilename,
                size=one.size,
                sha256=None if one.lfs is None else one.lfs.sha256,
                git_sha1=one.blob_id if one.lfs is None else None,
            )
        )
    return info.sha, listed


def _is_of_tools(name: str) -> bool:
    """Whether a file is git's, whose settings may run programs, or lies where the library's notes
    do, which are removed in the end."""
    folders = name.split("/")[:-1]
    return name in _LEFT_OUT or ".git" in folders or folders[:1] == [_NOTES.parts[0]]


def _require_own(part: Path) -> None:
    is_own = (part / _NOTES).is_dir() and not part.is_symlink()
    if os.path.lexists(part) and not is_own and not (part.is_dir() and not any(part.iterdir())):
        raise ConfigError(
            f"files of a pull arrive in {part}, which is there and not of one; move it away, or "
            "name another folder"
        )


def _require_room(part: Path, wanted: list[_Listed]) -> None:
    there = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    needed = sum(one.size or 0 for one in wanted) - there
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise ConfigError(
            f"{needed / 1e9:,.1f} GB more need room, the disk has {free / 1e9:,.1f} GB; "
            "make room, or name a folder on another disk"
        )


def _download(hub_id: str, commit: str, part: Path, wanted: list[_Listed]) -> None:
    from huggingface_hub import snapshot_download

    # The library asks for the list again; nothing comes that was not in the one that was checked.
    patterns = [glob.escape(one.name) for one in wanted]
    snapshot_download(
        hub_id, revision=commit, local_dir=part, allow_patterns=patterns, max_workers=2
    )


def _require_bytes(hub_id: str, part: Path, wanted: list[_Listed]) -> None:
    for one in wanted:
        path = part / one.name
        found = path.stat().st_size if path.is_file() else None
        is_whole = found is not None and one.size in (None, found) and _has_hash(path, one)
        if not is_whole:
            path.unlink(missing_ok=True)
            raise AccessError(
                f"{one.name} of {hub_id} did not arrive as the hub has it; run the same command "
                "again, complete files are kept"
            )


def _has_hash(path: Path, one: _Listed) -> bool:
    """Whether a file has the hash that the hub states, if it states one."""
    if one.sha256 is None and one.git_sha1 is None:
        return True
    if one.sha256 is not None:
        digest = hashlib.sha256()
    else:  # git's hash of a file: of a heading, and what it holds
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() in (one.sha256, one.git_sha1)


def _remove_others(part: Path, names: set[str]) -> None:
    """Files of an earlier state of the repository, and the library's notes, which end the pull."""
    for path in part.rglob("*"):
        is_note = path.is_relative_to(part / _NOTES)
        if path.is_file() and not is_note and path.relative_to(part).as_posix() not in names:
            path.unlink()
    shutil.rmtree(part / _NOTES.parts[0], ignore_errors=True)
