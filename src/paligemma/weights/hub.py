"""Downloading a model from the hub; a copy on this machine is read whatever the hub answers."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from paligemma.config import named_release, published_ids
from paligemma.errors import (
    AccessError,
    CheckpointError,
    MissingExtraError,
    ModelNotFoundError,
    PaliGemmaError,
)
from paligemma.weights.foreign import kind_of
from paligemma.weights.model_files import CODECS, TOKENIZERS, in_folder
from paligemma.weights.safetensors_file import INDEX_NAME
from paligemma.weights.shapes import few
from paligemma.whole_file import NO_ROOM

logger = logging.getLogger(__name__)

# Exactly what is read; the hub's folders also hold other copies of the same weights.
HUB_FILES = (
    "config.json",
    "model*.safetensors",
    INDEX_NAME,
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    # Beside a ColPali: its prompts, and its projection where sentence-transformers wrote it.
    "colpali.json",
    "processor_config.json",
    "modules.json",
    "*_Dense/*",
)
# Of an adapter; pickled weights are never fetched.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# In the place of a model's usual files: an adapter, weights under another name, or big_vision's.
_OTHER_FILES = (
    ADAPTER_FILES,
    ("*.safetensors",),
    ("*.npz*", "paligemma_tokenizer.model"),
)
DATASET_FILES = ("*.parquet", "own-format.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A hub id this alike is a misspelt release; a fine-tune's own name rarely is.
_ALIKE = 0.9
_MAX_SHOWN = 160
_QUERY = re.compile(r"(https?://[^\s'\"?]*)\?[^\s'\"]+")


def download(
    hub_id: str, revision: str | None, *, ask: bool, files: tuple[str, ...] = HUB_FILES
) -> Path:
    """The folder of a model or an adapter of the hub on this machine.

    Args:
        hub_id: owner/name.
        revision: branch, tag or commit; None is the main branch.
        ask: whether the hub may be asked; without, only an earlier download is used.
        files: `HUB_FILES` or `ADAPTER_FILES`.

    Raises:
        AccessError: the hub refuses, fails or cannot be reached, or the cache cannot be written.
        ModelNotFoundError: the hub has no such model or revision.
        CheckpointError: it has other files than are read.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        folder = _snapshot(hub_id, revision, files, ask=ask)
        if ask and files is HUB_FILES and not _holds_model(folder):
            others = _others_of(hub_id, revision)
            folder = _snapshot(hub_id, revision, (*HUB_FILES, *others), ask=True)
        return folder
    except CheckpointError:
        raise
    except PaliGemmaError as explained:
        if isinstance(explained, MissingExtraError):
            raise
        cached = _cached(hub_id, revision, files)
        if cached is None:
            raise
        if ask and not _is_offline(explained):
            logger.warning("the copy of %s on this machine is read: %s", hub_id, explained)
        return cached


def download_dataset(hub_id: str, revision: str | None) -> Path:
    """The folder of a data set's parquet files on this machine; its name is the commit.

    A revision that is a commit and lies here already is read without asking the hub.

    Raises:
        AccessError, ModelNotFoundError, MissingExtraError: as of `download`.
    """
    if _COMMIT.fullmatch(revision or ""):
        with suppress(AccessError):
            return _snapshot(hub_id, revision, DATASET_FILES, ask=False, kind="dataset")
    try:
        return _snapshot(hub_id, revision, DATASET_FILES, ask=True, kind="dataset")
    except AccessError as explained:
        try:
            found = _snapshot(hub_id, revision, DATASET_FILES, ask=False, kind="dataset")
        except PaliGemmaError:
            raise explained from None
        logger.warning("the copy of %s on this machine is read: %s", hub_id, explained)
        return found


def _snapshot(
    hub_id: str, revision: str | None, files: Sequence[str], *, ask: bool, kind: str = "model"
) -> Path:
    """Download files of a repository of the hub, or find those of an earlier download."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(
            f"loading {hub_id} from the hub needs huggingface_hub; pip install 'paligemma[hub]', "
            "or download the folder yourself and name it"
        ) from error

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id=hub_id,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(files),
                local_files_only=not ask,
            )
        )
    # What the library raises depends on its version and on whoever answers in the hub's place.
    except Exception as error:
        shown = hub_id if kind == "model" else f"{kind}s/{hub_id}"
        raise explain_download(error, shown, revision) from error


def _holds_model(folder: Path) -> bool:
    try:
        in_folder("", folder)
    except CheckpointError:
        return False
    return True


def _others_of(hub_id: str, revision: str | None) -> tuple[str, ...]:
    """Patterns of the files that a repository has in the place of a model's usual ones.

    Raises:
        CheckpointError: it has none that is read.
        AccessError, ModelNotFoundError: as of `download`.
    """
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(hub_id, revision=revision)
    except Exception as error:  # as in `_snapshot`
        raise explain_download(error, hub_id, revision) from error
    for patterns in _OTHER_FILES:
        if any(
            fnmatchcase(one, patterns[0]) for one in names if one not in CODECS and "/" not in one
        ):
            return patterns
    raise CheckpointError(
        f"a model of the hub must have safetensors or an .npz, {hub_id} has "
        f"{kind_of(names) or few(sorted(names), 5) or 'no files'}"
    )


def _cached(hub_id: str, revision: str | None, files: tuple[str, ...]) -> Path | None:
    """The folder of an earlier download that holds all weights."""
    from huggingface_hub import try_to_load_from_cache

    try:
        for sign in (files[0], *(TOKENIZERS if files is HUB_FILES else ())):
            found = try_to_load_from_cache(hub_id, sign, revision=revision)
            if isinstance(found, str):
                folder = Path(found).parent
                if files is ADAPTER_FILES:
                    return folder if all((folder / name).is_file() for name in files) else None
                return in_folder(hub_id, folder).folder
    except (CheckpointError, OSError, ValueError):
        pass
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it arose from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error))


def explain_download(error: Exception, hub_id: str, revision: str | None) -> PaliGemmaError:
    from huggingface_hub import errors

    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, errors.RevisionNotFoundError):
            return ModelNotFoundError(
                f"a revision must exist on the hub, {hub_id} has no {revision!r}; leave it out"
            )
        if isinstance(cause, errors.HFValidationError):
            return ModelNotFoundError(
                f"a model must be a folder, an .npz file or a hub id (owner/name), got {hub_id!r}"
            )
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, errors.HfHubHTTPError) and status is not None:
            return _answered(int(status), hub_id, cause)
        if type(cause) is not FileNotFoundError and isinstance(cause, OSError) and cause.errno:
            return _cache_fault(cause, hub_id)
    if (odd := odd_token()) is not None:
        return odd
    first = str(error).splitlines()[0] if str(error) else ""
    said = f"{type(error).__name__}: {without_secrets(first)}"
    said = said[:_MAX_SHOWN]
    names = {name.__name__ for cause in chain for name in type(cause).__mro__}
    if "RemoteProtocolError" in names or "ReadError" in names or "Consistency" in str(error):
        return AccessError(
            f"the download of {hub_id} broke off ({said}); start it again, complete files are kept"
        )
    if names & {"LocalEntryNotFoundError", "TransportError", "ConnectionError", "HTTPError"} and (
        "FileMetadataError" not in names
    ):
        return AccessError(
            f"{hub_id} is not on this machine and the hub cannot be reached (offline, or "
            "HF_HUB_OFFLINE is set); connect once to download it, or copy its folder here and name "
            f"that{_hint(hub_id)}"
        )
    if isinstance(error, ValueError) and "filename" in str(error):
        return AccessError(f"the hub lists a file of {hub_id} that cannot be kept ({said})")
    return AccessError(
        f"what answers in the hub's place is not the hub ({said}); sign in to the network if it "
        f"has a login page, check HF_ENDPOINT and the proxy, or copy the folder of {hub_id} here"
    )


def _answered(status: int, hub_id: str, error: BaseException) -> PaliGemmaError:
    from huggingface_hub import errors

    of_a_file = "/resolve/" in str(getattr(getattr(error, "response", None), "url", ""))
    if status == 404 and not of_a_file and not isinstance(error, errors.EntryNotFoundError):
        if named_release(hub_id):
            return AccessError(_refused(hub_id))
        return ModelNotFoundError(
            f"a hub id must exist, https://huggingface.co/{hub_id} does not (or is private: set "
            f"HF_TOKEN); check the spelling{_hint(hub_id)}"
        )
    if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
        return AccessError(_refused(hub_id))
    if status == 429:
        return AccessError(
            f"the hub answered 429 to the download of {hub_id}: too many requests came from here; "
            "wait some minutes, or set HF_TOKEN, whose owner may ask more often"
        )
    what = "it is out of order" if status >= 500 else "it does not serve what it lists"
    return AccessError(
        f"the hub answered {status} to the download of {hub_id}: {what}; try again later"
    )


def _cache_fault(error: OSError, hub_id: str) -> AccessError:
    """Errors of the operating system: of the disk, or of the network."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    if error.errno in NO_ROOM:
        return AccessError(
            f"the disk of the hub's cache {cache} is full; make room, or set HF_HOME to a folder "
            "on another disk"
        )
    if isinstance(error, ConnectionError | TimeoutError) or error.filename is None:
        return AccessError(
            f"{hub_id} is not on this machine and the hub cannot be reached ({error.strerror}); "
            "connect once to download it, or copy its folder here and name that" + _hint(hub_id)
        )
    return AccessError(
        f"the hub's cache {cache} must be writable, it is not ({error.strerror}); change its "
        "rights, or set HF_HOME to another folder"
    )


def odd_token() -> AccessError | None:
    """The error of a token that no request can carry; the library's own would show it."""
    from huggingface_hub import get_token

    try:
        if all("!" <= character <= "~" for character in get_token() or ""):
            return None
    except (OSError, ValueError):  # a stored one that cannot be read
        pass
    return AccessError(
        "a token of the hub is letters, digits and underscores, HF_TOKEN (or the stored login) "
        "holds other characters; copy it again"
    )


def without_secrets(text: str) -> str:
    """The words of an error without the user's token, and without what follows "?" in addresses,
    which may be a signature."""
    from huggingface_hub import get_token

    with suppress(OSError, ValueError):  # a stored token that cannot be read
        if token := get_token():
            text = text.replace(token, "***")
    return _QUERY.sub(r"\1?...", text)


def _hint(hub_id: str) -> str:
    """The release that a hub id may have been meant to name; "" if it is one, or is like none."""
    if named_release(hub_id):
        return ""
    close = difflib.get_close_matches(hub_id, published_ids(), n=1, cutoff=_ALIKE)
    return f"; did you mean {close[0]}?" if close else ""


def _refused(hub_id: str) -> str:
    return (
        f"the hub gives {hub_id} only to those who accepted its licence; accept it at "
        f"https://huggingface.co/{hub_id} and set HF_TOKEN to a token of that account"
        + _hint(hub_id)
    )
