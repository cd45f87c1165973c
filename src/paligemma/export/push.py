"""A folder to a repository of the hub, in one commit: all its files appear there, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import ConfigError, PaliGemmaError
from paligemma.export.card import adapter_card_text, addressed, card_text
from paligemma.export.hub_card import Scores, read_scores, with_scores
from paligemma.export.hub_files import (
    explain_push,
    files_to_push,
    no_token,
    outdated,
    require_hub,
    require_id,
)
from paligemma.weights.hf_config import config_from_hf, read_json
from paligemma.weights.hub import odd_token

CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is sent, decided before anything is.

    Attributes:
        folder: whose files are sent.
        hub_id: owner/name.
        files: in order, the card too where the folder has one.
        card: its text, with the evaluation table; the file in the folder stays as it is.
    """

    folder: Path
    hub_id: str
    files: tuple[Path, ...]
    card: str

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)


def plan_push(folder: Path, hub_id: str, *, runs: Sequence[Path] = ()) -> Push:
    """Check a folder and write its card.

    Args:
        runs: folders of `paligemma eval`, whose figures the card shows.

    Raises:
        ConfigError: the folder holds no model or what is not sent, or the name is none.
        DataError: a run has no scores.
    """
    require_id(hub_id)
    files = files_to_push(folder)
    scores: list[Scores] = [read_scores(run) for run in runs]
    card = addressed(_card(folder), hub_id)
    if scores:
        card = with_scores(card, scores, name=hub_id.partition("/")[2])
    return Push(folder=folder, hub_id=hub_id, files=tuple(files), card=card)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did.

    Attributes:
        commit_url: the address of the commit.
        removed: names of weights of an earlier push that the folder does not have.
    """

    commit_url: str
    removed: tuple[str, ...]


def push(
    plan: Push, *, public: bool = False, revision: str | None = None, message: str | None = None
) -> Pushed:
    """Send a folder.

    Files that the hub has already, also from a push that was cut off, are not sent again. Weights
    of an earlier push that the folder does not have are removed by the same commit, as a reader
    could take them for the new ones; other files of the repository stay.

    Args:
        public: who may see a repository that is made; one that is there stays as it is.
        revision: branch, which must be there; None is the main branch.
        message: of the commit.

    Raises:
        AccessError: no token, no right to write, or the hub fails.
        ModelNotFoundError: no such branch.
        ConfigError: a file was changed meanwhile.
        MissingExtraError: huggingface_hub is not installed.
    """
    require_hub()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if (odd := odd_token()) is not None:
        raise odd
    if get_token() is None:
        raise no_token()
    api = HfApi()
    before = {path: _stamp(path) for path in plan.files}
    try:
        additions = [
            CommitOperationAdd(path.relative_to(plan.folder).as_posix(), path)
            for path in plan.files
            if path != plan.folder / CARD
        ]
        additions.append(CommitOperationAdd(CARD, plan.card.encode()))
        api.create_repo(plan.hub_id, private=not public, exist_ok=True)
        there = api.list_repo_files(plan.hub_id, revision=revision)
        removed = outdated(there, {one.path_in_repo for one in additions})
        done = api.create_commit(
            plan.hub_id,
            [*additions, *map(CommitOperationDelete, removed)],
            commit_message=message or "Upload with paligemma push",
            revision=revision,
            num_threads=2,
        )
    except PaliGemmaError:
        raise
    # What the library raises depends on its version and on whoever answers in the hub's place.
    except Exception as error:
        _require_unchanged(before)
        if isinstance(error, OSError) and error.filename:  # a file that cannot be read
            raise
        raise explain_push(error, plan.hub_id) from error
    _require_unchanged(before)
    return Pushed(commit_url=str(done.commit_url), removed=tuple(removed))


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _require_unchanged(before: dict[Path, tuple[int, int] | None]) -> None:
    for path, stamp in before.items():
        if stamp is None or _stamp(path) != stamp:
            raise ConfigError(
                f"{path} was changed while its folder was pushed, so the hub may have files of two "
                "states; run the same command again when nothing writes there"
            )


def _card(folder: Path) -> str:
    path = folder / CARD
    if path.is_file():
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise ConfigError(f"a card may have {_MAX_CARD_BYTES:,} bytes, {path} has more")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    if not (folder / "config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        return adapter_card_text(name=folder.resolve().name, base=str(base or "PaliGemma"))
    config = config_from_hf(read_json(folder / "config.json"))
    return card_text(name=folder.resolve().name, config=config, kind="hub")
