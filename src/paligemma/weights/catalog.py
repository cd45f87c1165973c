"""From the name of a model to the files that hold it.

A model is "tiny" (inside the package), a folder, an npz file, or a hub id, also as "id@revision".
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import string
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from paligemma.config import RELEASES, canonical_name, named_release
from paligemma.errors import (
    AccessError,
    CheckpointError,
    ConfigError,
    MissingExtraError,
    ModelNotFoundError,
)
from paligemma.weights.hf_config import read_json
from paligemma.weights.safetensors_file import INDEX_NAME

EMBEDDED = "tiny"
Layout = Literal["hf", "npz"]
# Exactly what is read; the hub's folders also hold other copies of the same weights.
HUB_FILES = (
    "config.json",
    "model*.safetensors",
    INDEX_NAME,
    "tokenizer.model",
    "tokenizer.json",
)
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "paligemma_tokenizer.model")
CODECS = ("mask_codec.safetensors", "vae-oid.npz")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_MAX_SHARDS = 1000
_MAX_DIGITS = 9
_MAX_SHOWN = 200
# A hub id this alike is a misspelt release; a fine-tune's own name rarely is.
_ALIKE = 0.9


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Files of one model; paths that a checkpoint lacks are None.

    Attributes:
        name: as the user gave it.
        folder: where the files lie.
        layout: "hf" (safetensors) or "npz" (big_vision).
        weights: safetensors shards, or the npz, or its pieces in order.
        config: config.json.
        tokenizer: SentencePiece model or tokenizer.json.
        mask_codec: weights of the segmentation codec.
    """

    name: str
    folder: Path
    layout: Layout
    weights: tuple[Path, ...]
    config: Path | None
    tokenizer: Path | None
    mask_codec: Path | None


def resolve(
    source: str | os.PathLike[str], *, revision: str | None = None, download: bool = True
) -> Checkpoint:
    """Find a model's files; download them if it is a hub id.

    Args:
        source: "tiny", a folder, an npz (or any `.part*` piece of one), or a hub id such as
            "google/paligemma2-3b-mix-448", also "id@revision" or as big_vision or Keras spell it.
        revision: branch of the hub; "float16" and "bfloat16" exist for PaliGemma 1.
        download: whether the hub may be asked; without, only what was downloaded before is used.

    Raises:
        ModelNotFoundError: no model of that name.
        CheckpointError: a folder without weights, or with a part of them.
        ConfigError: a revision of a model that is not the hub's, or that the release has not.
        AccessError: the hub refuses or cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    name = os.fspath(source)
    # os.path answers False where pathlib raises: for names too long or with a null byte.
    path = os.path.expanduser(name)
    is_folder, is_file = os.path.isdir(path), os.path.isfile(path)
    if revision is not None and (name == EMBEDDED or is_folder or is_file):
        raise ConfigError(
            f"a revision is a branch of a model on the hub, {name!r} is on this machine and has "
            f"none, got {revision!r}; leave it out"
        )
    if name == EMBEDDED:
        return _in_folder(name, embedded_folder())
    if is_folder:
        return _in_folder(name, Path(path))
    if is_file:
        return _in_file(name, Path(path))
    if name.startswith((".", "/", "~")) or ".npz" in name or name.count("/") > 1:
        raise ModelNotFoundError(
            f"a model must be a folder, an .npz file, a hub id or {EMBEDDED!r}, there is no file "
            f"{name!r}; check the path"
        )
    hub_id, _, tail = name.partition("@")
    hub_id = canonical_name(hub_id)
    if not _HUB_ID.match(hub_id):
        raise ModelNotFoundError(_unknown(name))
    if revision and tail and revision != tail:
        raise ConfigError(
            f"a model has one revision, got {tail!r} in its name and {revision!r}; leave one out"
        )
    revision = revision or tail or None
    _check_revision(hub_id, revision)
    return _in_folder(name, _download(hub_id, revision, download))


def embedded_folder() -> Path:
    """Where the model inside the package lies."""
    return Path(str(resources.files("paligemma"))) / "models" / EMBEDDED


def published_ids() -> list[str]:
    """Hub ids of every release that is no pattern, smallest first."""
    return [
        release.pattern.format(res=resolution)
        for release in RELEASES
        for resolution in release.resolutions_px
        if "*" not in release.pattern
    ]


def _unknown(name: str) -> str:
    name = name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "..."
    known = [EMBEDDED, *published_ids()]
    close = difflib.get_close_matches(name, [k.removeprefix("google/") for k in known], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"for instance {EMBEDDED!r}"
    return (
        f"a model must be a folder, an .npz file, a hub id (owner/name) or {EMBEDDED!r}, "
        f"got {name!r}; {hint}"
    )


def _check_revision(hub_id: str, revision: str | None) -> None:
    found = named_release(hub_id)
    if found is None or revision not in ("float32", "float16", "bfloat16"):
        return
    release, _ = found
    if release.text != "gemma_2b":
        raise ConfigError(
            f"PaliGemma 2 is published in bfloat16 without revisions, got {hub_id}@{revision}; "
            "leave the revision out and choose the dtype when loading"
        )
    if revision == "float32":
        raise ConfigError(
            f"float32 is the main revision of {hub_id}, got {revision!r}; leave it out"
        )


def _in_file(name: str, path: Path) -> Checkpoint:
    if ".npz" not in path.name:
        raise CheckpointError(
            f"a single file must be a big_vision .npz, got {path}; for safetensors name the "
            "folder, which also holds config.json"
        )
    base = path.with_name(re.sub(r"\.part[^/]*$", "", path.name))
    pieces = (path,) if base == path else _pieces(base)
    return _checkpoint(name, path.parent, "npz", pieces)


def _pieces(base: Path) -> tuple[Path, ...]:
    """The `.part*` pieces in the order of their numbers or letters; none may be left out."""

    def order(path: Path) -> tuple[int, str]:
        # part2 before part10, and partaa before partab
        tail = path.name.rsplit(".part", 1)[1]
        digits = re.sub(r"\D", "", tail)
        return (int(digits[:9]) if digits else 0, tail)

    pieces = tuple(sorted(base.parent.glob(base.name + ".part*"), key=order))
    tails = [path.name.rsplit(".part", 1)[1] for path in pieces]
    missing = _missing(tails)
    if missing:
        raise CheckpointError(
            f"every piece of {base} must be there, missing: "
            f"{', '.join(f'{base.name}.part{tail}' for tail in missing[:9])}; finish the download"
        )
    return pieces


def _missing(tails: list[str]) -> list[str]:
    """Numbers (0, 1, ...) or letters (aa, ab, ...) that a series leaves out before its end."""
    width = len(tails[0])
    if all(tail.isascii() and tail.isdigit() for tail in tails):
        numbers = {int(tail) for tail in tails if len(tail) <= _MAX_DIGITS}
        padded = tails[0].startswith("0") and width > 1
        first = min(*numbers, 1) if numbers else 0
        return [
            f"{number:0{width if padded else 1}}"
            for number in itertools.islice(range(first, max(numbers, default=0)), _MAX_SHARDS)
            if number not in numbers
        ]
    if width <= 2 and all(re.fullmatch(f"[a-z]{{{width}}}", tail) for tail in tails):
        series = map("".join, itertools.product(string.ascii_lowercase, repeat=width))
        return [tail for tail in series if tail < max(tails) and tail not in tails]
    return []


def _in_folder(name: str, folder: Path) -> Checkpoint:
    index = folder / INDEX_NAME
    if index.is_file():
        return _checkpoint(name, folder, "hf", _shards(index))
    single = folder / "model.safetensors"
    if single.is_file():
        return _checkpoint(name, folder, "hf", (single,))
    bases = npz_names(folder)
    if len(bases) == 1:
        base = folder / bases.pop()
        return _checkpoint(name, folder, "npz", (base,) if base.is_file() else _pieces(base))
    if bases:
        raise CheckpointError(
            f"a folder must hold one .npz, {folder} holds {', '.join(sorted(bases))}; name the file"
        )
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter, not a model; load the model it was trained on and add it"
        )
    raise CheckpointError(
        f"a model folder must hold model.safetensors, {INDEX_NAME} or an .npz, {folder} holds "
        "none; is it the right folder, and was the download complete?"
    )


def npz_names(folder: Path) -> set[str]:
    """Names of a folder's npz files that may hold a model; of pieces, the name of the whole."""
    return {
        re.sub(r"\.part[^/]*$", "", path.name)
        for path in folder.glob("*.npz*")
        if path.name not in CODECS and path.is_file()
    }


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} must list its files under weight_map; fetch it again")
    names = sorted({str(name) for name in weight_map.values()})
    if len(names) > _MAX_SHARDS or any(Path(name).name != name for name in names):
        raise CheckpointError(
            f"{index} may name at most {_MAX_SHARDS} files beside it, without folders; fetch it "
            "again from its publisher"
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"every file that {index} names must be there, missing: {', '.join(missing)}; "
            "finish the download"
        )
    return tuple(index.parent / name for name in names)


def _checkpoint(name: str, folder: Path, layout: Layout, weights: tuple[Path, ...]) -> Checkpoint:
    def first(names: tuple[str, ...]) -> Path | None:
        return next((folder / n for n in names if (folder / n).is_file()), None)

    return Checkpoint(
        name=name,
        folder=folder,
        layout=layout,
        weights=weights,
        config=first(("config.json",)),
        tokenizer=first(TOKENIZERS),
        mask_codec=first(CODECS),
    )


def _download(hub_id: str, revision: str | None, download: bool) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(
            f"loading {hub_id} from the hub needs huggingface_hub; pip install 'paligemma[hub]', "
            "or download the folder yourself and name it"
        ) from error
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id=hub_id,
            revision=revision,
            allow_patterns=list(HUB_FILES),
            local_files_only=not download,
        )
    except errors.GatedRepoError as error:
        raise AccessError(_refused(hub_id)) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"a revision must exist on the hub, {hub_id} has no {revision!r}; leave it out"
        ) from error
    except errors.RepositoryNotFoundError as error:
        if _status(error) in (401, 403) or named_release(hub_id):
            raise AccessError(_refused(hub_id)) from error
        raise ModelNotFoundError(
            f"a hub id must exist, https://huggingface.co/{hub_id} does not (or is private: set "
            f"HF_TOKEN); check the spelling{_hint(hub_id)}"
        ) from error
    except errors.HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise AccessError(_refused(hub_id)) from error
        raise AccessError(
            f"the hub answered {_status(error)} to the download of {hub_id}; try again later"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(_unknown(hub_id)) from error
    # The base is the error of whichever HTTP client the hub's library uses.
    except (OSError, *errors.HfHubHTTPError.__bases__) as error:  # type: ignore[misc]
        raise AccessError(
            f"{hub_id} is not on this machine and the hub cannot be reached (offline, or "
            "HF_HUB_OFFLINE is set); connect once to download it, or copy its folder here and name "
            f"that{_hint(hub_id)}"
        ) from error
    return Path(folder)


def _status(error: Any) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


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
