"""Which files travel between a folder and the hub, and what the errors of the hub say."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from paligemma.errors import (
    AccessError,
    ConfigError,
    MissingExtraError,
    ModelNotFoundError,
    PaliGemmaError,
)
from paligemma.weights.hub import causes, without_secrets
from paligemma.weights.model_files import UNFINISHED_NAME

# Files that run code when they are opened, by their endings.
RUNS_CODE = (
    *(".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"),  # pickled
    *(".dll", ".dylib", ".pt2", ".pyc", ".so"),  # compiled
)
MAX_FILES = 1_000
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MAX_ID = 96
_MAX_NAME = 500
_SIGNS = ("config.json", "adapter_config.json")
# Weights under the names that are written here, and the kind of each: readers take them by name.
_WEIGHTS = {
    "model": re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    "codec": re.compile(r"mask_codec\.(safetensors|npz)"),
    "adapter": re.compile(r"adapter_model\.safetensors"),
    "onnx": re.compile(
        r"onnx/(vision_encoder|embed_tokens|decoder_model_merged)\w*\.onnx(_data(_\d+)?)?"
    ),
}
_MAX_SHOWN = 160
# What a storage behind the hub answers to a file by an old address, or of other bytes.
_BY_STORAGE = (400, 401, 403, 404, 410)


def require_hub() -> None:
    """Raise MissingExtraError unless huggingface_hub is installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "the hub is reached through huggingface_hub; pip install 'paligemma[hub]'"
        ) from error


def require_id(name: str) -> str:
    """The name of a repository, checked.

    Raises:
        ConfigError: it is not owner/name.
    """
    if len(name) > _MAX_ID or not _ID.fullmatch(name) or ".." in name or "--" in name:
        raise ConfigError(
            f"a repository of the hub is owner/name, of letters, digits, '-', '_' and '.', got "
            f"{name!r:.200}"
        )
    return name


def files_to_push(folder: Path) -> list[Path]:
    """The files of a model's folder in order, without hidden ones.

    Raises:
        ConfigError: the folder holds no model, a model half written, files that run code, a link
            that leads out of it, too many files, or one whose name no pull would take.
    """
    if not folder.is_dir():
        raise ConfigError(f"a folder is pushed, there is none named {str(folder)!r:.200}")
    if (folder / UNFINISHED_NAME).exists():
        raise ConfigError(f"{folder} was being overwritten; finish that first")
    if not any((folder / name).is_file() for name in _SIGNS):
        raise ConfigError(
            f"a model's folder has {' or '.join(_SIGNS)}, {folder} has neither; name a folder that "
            "convert, export, train or adapter merge wrote"
        )
    files = list(_walk(folder))
    if len(files) > MAX_FILES:
        raise ConfigError(f"a folder to push has at most {MAX_FILES:,} files, {folder} has more")
    risky = [path for path in files if path.suffix.lower() in RUNS_CODE]
    if risky:
        names = ", ".join(str(path.relative_to(folder)) for path in risky[:3])
        raise ConfigError(
            f"pickled and compiled files run code when they are opened and are not pushed, "
            f"{folder} has {names}; convert them or move them away"
        )
    sent = (path.relative_to(folder).as_posix() for path in files)
    if (odd := next(filter(_is_odd, sent), None)) is not None:
        raise ConfigError(
            "names of files on the hub are printable, without backslashes, and of up to "
            f"{_MAX_NAME} characters, {folder} has {odd!r:.100}; rename it, or no pull takes it"
        )
    return files


def outdated(there: Iterable[str], sent: Collection[str]) -> list[str]:
    """Weights of an earlier state of a repository that a reader could take for those sent now.

    Args:
        there: names of the repository's files.
        sent: names of the files that are pushed.
    """
    kinds = [one for one in _WEIGHTS.values() if any(map(one.fullmatch, sent))]
    return sorted(
        name for name in there if name not in sent and any(one.fullmatch(name) for one in kinds)
    )


def _walk(folder: Path) -> Iterator[Path]:
    inside = os.path.realpath(folder)
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for path in (Path(place) / one for one in (*folders, *sorted(names))):
            if path.name.startswith("."):
                continue
            target = os.path.realpath(path)
            is_lost = path.is_symlink() and (path.is_dir() or not path.exists())
            if is_lost or os.path.commonpath([inside, target]) != inside:
                raise ConfigError(
                    f"files of a folder lie in it, {path} is a link that leads elsewhere or to a "
                    "folder; replace it by what it names"
                )
            if not path.is_file():
                continue
            yield path
            count += 1
            if count > MAX_FILES:
                return


def require_safe(name: str) -> None:
    """Raise AccessError where a name that the hub lists would leave the folder."""
    if _is_odd(name):
        raise AccessError(f"the hub lists a file that cannot be kept ({name!r:.100})")


def _is_odd(name: str) -> bool:
    path = PurePosixPath(name)
    is_path = bool(name) and "\\" not in name and path.as_posix() == name
    stays = not path.is_absolute() and ".." not in path.parts
    return not (is_path and stays and len(name) <= _MAX_NAME and name.isprintable())


def explain_push(error: Exception, hub_id: str) -> PaliGemmaError:
    """What a failed push means, in a sentence."""
    from huggingface_hub import errors

    for cause in causes(error):
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return no_token()
        if isinstance(cause, errors.RevisionNotFoundError):
            return ModelNotFoundError(
                f"a branch must exist on the hub, {hub_id} has none of that name; make it there"
            )
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, errors.HfHubHTTPError) and status is not None:
            return _answered(int(status), hub_id, cause)
    first = list(causes(error))[-1]
    said = f"{type(first).__name__}: {without_secrets(' '.join(str(first).split()))}"
    names = {name.__name__ for cause in causes(error) for name in type(cause).__mro__}
    if names & {"TransportError", "ConnectionError", "OfflineModeIsEnabled"}:
        return AccessError(
            f"the hub cannot be reached ({said[:_MAX_SHOWN]}); connect, unset HF_HUB_OFFLINE, and "
            "run the same command: what arrived is not sent again"
        )
    return AccessError(f"the hub did not take {hub_id} ({said[:_MAX_SHOWN]}); try again later")


def no_token() -> AccessError:
    """The error of a push without a token."""
    return AccessError(
        "a push needs a token of the hub, none is set; make one with the right to write at "
        "https://huggingface.co/settings/tokens and set HF_TOKEN to it"
    )


def _answered(status: int, hub_id: str, error: BaseException) -> PaliGemmaError:
    again = "run the same command again: what arrived is not sent again"
    request = getattr(getattr(error, "response", None), "request", None)
    if getattr(request, "method", "") == "PUT" and status in _BY_STORAGE:
        return AccessError(f"the hub's storage did not take a file of {hub_id} ({status}); {again}")
    sentences = {
        400: f"the hub refuses what was sent to {hub_id} ({_said(error)})",
        401: "the hub does not know the token in HF_TOKEN (or of the stored login); make another "
        "one at https://huggingface.co/settings/tokens",
        403: f"the account of the token may not write to {hub_id}; name a repository of your own, "
        "or use a token with the right to write",
        404: f"the hub has no repository {hub_id} that this token may see; check the name",
        409: f"{hub_id} was changed meanwhile; {again}",
        412: f"{hub_id} was changed meanwhile; {again}",
        413: f"a file for {hub_id} is larger than the hub takes; write smaller shards",
        429: f"too many requests came from here (429); wait some minutes and {again}",
    }
    sentence = sentences.get(status, f"the hub answered {status} to the push of {hub_id}; {again}")
    return ModelNotFoundError(sentence) if status == 404 else AccessError(sentence)


def _said(error: BaseException) -> str:
    return without_secrets(" ".join(str(error).split()))[-_MAX_SHOWN:]
