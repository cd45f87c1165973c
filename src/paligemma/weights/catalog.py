"""From the name of a model to the files that hold it.

A model is "tiny" (inside the package), a folder, a file of weights, or a hub id, also as
"id@revision".
"""

from __future__ import annotations

import difflib
import os
import re
from importlib import resources
from pathlib import Path

from paligemma.config import canonical_name, named_release, published_ids
from paligemma.errors import ConfigError, ModelNotFoundError
from paligemma.weights.hub import download as download_from_hub
from paligemma.weights.model_files import Checkpoint, in_file, in_folder

EMBEDDED = "tiny"
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_MAX_SHOWN = 200
_MAX_HUB_NAME = 400  # the hub allows 96 characters of an id; the rest is a revision


def resolve(
    source: str | os.PathLike[str], *, revision: str | None = None, download: bool = True
) -> Checkpoint:
    """Find a model's files; download them if it is a hub id.

    Args:
        source: "tiny", a folder, a .safetensors or npz file (or any `.part*` piece of one), or a
            hub id such as "google/paligemma2-3b-mix-448", also "id@revision" or as big_vision or
            Keras spell it.
        revision: branch of the hub; "float16" and "bfloat16" exist for PaliGemma 1.
        download: whether the hub may be asked; without, only what was downloaded before is used.

    Raises:
        ModelNotFoundError: no model of that name.
        CheckpointError: a folder without weights, or with a part of them.
        ConfigError: a revision of a model that is not the hub's, or that the release has not.
        AccessError: the hub refuses or cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    if not isinstance(source, str | os.PathLike):
        raise ModelNotFoundError(
            f"a model is named by a word or a path, got {type(source).__name__}"
        )
    name = os.fspath(source)
    # os.path answers False where pathlib raises: for names too long or with a null byte.
    path = os.path.expanduser(name)
    is_folder, is_file = os.path.isdir(path), os.path.isfile(path)
    if revision is not None and (name == EMBEDDED or is_folder or is_file):
        raise ConfigError(
            f"a revision is a branch of a model on the hub, {name!r} is on this machine and has "
            f"none, got {revision!r:.100}; leave it out"
        )
    if name == EMBEDDED:
        return in_folder(name, embedded_folder())
    if is_folder:
        return in_folder(name, Path(path))
    if is_file:
        return in_file(name, Path(path))
    if name.startswith((".", "/", "~")) or ".npz" in name or name.count("/") > 1:
        raise ModelNotFoundError(
            f"a model must be a folder, an .npz file, a hub id or {EMBEDDED!r}, there is no file "
            f"{_shown(name)}; check the path"
        )
    hub_id, _, tail = name.partition("@")
    hub_id = canonical_name(hub_id)
    if not _HUB_ID.match(hub_id) or len(name) > _MAX_HUB_NAME:
        raise ModelNotFoundError(_unknown(name))
    if revision and tail and revision != tail:
        raise ConfigError(
            f"a model has one revision, got {tail!r} in its name and {revision!r}; leave one out"
        )
    revision = revision or tail or None
    _check_revision(hub_id, revision)
    return in_folder(name, download_from_hub(hub_id, revision, ask=download))


def embedded_folder() -> Path:
    """Where the model inside the package lies."""
    return Path(str(resources.files("paligemma"))) / "models" / EMBEDDED


def _unknown(name: str) -> str:
    known = [EMBEDDED, *published_ids()]
    close = difflib.get_close_matches(name, [k.removeprefix("google/") for k in known], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"for instance {EMBEDDED!r}"
    return (
        f"a model must be a folder, an .npz file, a hub id (owner/name) or {EMBEDDED!r}, "
        f"got {_shown(name)}; {hint}"
    )


def _shown(name: str) -> str:
    return repr(name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "...")


def _check_revision(hub_id: str, revision: str | None) -> None:
    if len(revision or "") > _MAX_SHOWN:
        raise ModelNotFoundError(
            f"a revision must exist on the hub, {hub_id} has no {_shown(revision or '')}; "
            "leave it out"
        )
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
            f"float32 is the main revision of {hub_id}, got {revision!r:.100}; leave it out"
        )
