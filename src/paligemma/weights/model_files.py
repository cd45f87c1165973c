"""From a folder or a file to the files of one model: weights, config, tokenizer and mask codec."""

from __future__ import annotations

import itertools
import logging
import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paligemma.errors import CheckpointError, ConfigError
from paligemma.weights.foreign import contents, kind_of
from paligemma.weights.hf_config import read_json
from paligemma.weights.safetensors_file import INDEX_NAME
from paligemma.weights.shapes import few

logger = logging.getLogger(__name__)

Layout = Literal["hf", "npz"]
SINGLE_NAME = "model.safetensors"
PACKED_NAME = "model-packed.safetensors"
# Stands in a folder while the files of one checkpoint take the place of another's.
UNFINISHED_NAME = ".paligemma-unfinished"
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "paligemma_tokenizer.model")
CODECS = ("mask_codec.safetensors", "mask_codec.npz", "vae-oid.npz")
_SHARD = re.compile(r"(.*)-(\d{1,5})-of-(\d{1,5})\.safetensors")
_MAX_SHARDS = 1000
_MAX_DIGITS = 9
_ADAPTER_SIGN = "adapter_config.json"
_SIGNS = (SINGLE_NAME, INDEX_NAME, PACKED_NAME, _ADAPTER_SIGN)
_MAX_BELOW = 1000  # folders inside one that are looked into


class AdapterInPlaceError(CheckpointError):
    """A folder that is named as a model holds an adapter.

    Attributes:
        folder: of the adapter.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} holds an adapter, not a model; name the model it was trained on, and this "
            "folder as adapter, or make one model of both with paligemma adapter merge"
        )
        self.folder = folder


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Files of one model; paths that a checkpoint lacks are None.

    Attributes:
        name: as the user gave it.
        folder: where the files lie.
        layout: "hf" (safetensors), "npz" (big_vision) or "packed" (weights in panels).
        weights: safetensors shards, or the npz, or its pieces in order, or the packed file.
        config: config.json.
        tokenizer: SentencePiece model or tokenizer.json.
        mask_codec: weights of the segmentation codec.
    """

    name: str
    folder: Path
    layout: Layout | Literal["packed"]
    weights: tuple[Path, ...]
    config: Path | None
    tokenizer: Path | None
    mask_codec: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read."""
        side = (self.config, self.tokenizer, self.mask_codec)
        return (*self.weights, *(path for path in side if path is not None))

    def require_plain(self, purpose: str) -> None:
        """Raise a ConfigError, which names the purpose, where the weights are packed."""
        if self.layout == "packed":
            raise ConfigError(
                f"{purpose} needs a model whose weights are not packed, {self.folder} holds "
                "packed ones; name the model that it was converted from"
            )


def in_file(name: str, path: Path) -> Checkpoint:
    """The model that a file named by the user belongs to.

    Raises:
        CheckpointError: the file is of another kind, or a piece of the model is missing.
    """
    of_adapter = path.name.startswith("adapter_") and (path.parent / _ADAPTER_SIGN).is_file()
    if path.name == INDEX_NAME or _SHARD.fullmatch(path.name) or of_adapter:
        return in_folder(name, path.parent)
    if path.name == PACKED_NAME:
        return _checkpoint(name, path.parent, "packed", (path,))
    if path.suffix == ".safetensors":
        return _checkpoint(name, path.parent, "hf", (path,))
    if ".npz" not in path.name:
        raise CheckpointError(
            f"a single file must be a .safetensors or a big_vision .npz, {path} is "
            f"{kind_of([path.name]) or 'another; name the folder of the model'}"
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


def in_folder(name: str, folder: Path) -> Checkpoint:
    """The model that a folder holds.

    Raises:
        CheckpointError: it holds none, a part of one, or several; or it cannot be read.
    """
    try:
        return _in_readable_folder(name, folder)
    except OSError as error:
        raise CheckpointError(
            f"a model folder must be readable, {folder} is not ({error.strerror}); change its "
            "rights or copy it"
        ) from error


def _in_readable_folder(name: str, folder: Path) -> Checkpoint:
    files = {path.name for path in folder.iterdir() if path.is_file()}
    if UNFINISHED_NAME in files:
        raise CheckpointError(
            f"{folder} was being overwritten when that was interrupted, and may mix two models; "
            "overwrite it again"
        )
    if PACKED_NAME in files:
        if beside := files & {SINGLE_NAME, INDEX_NAME}:
            raise CheckpointError(
                f"a folder must hold one model, {folder} holds {PACKED_NAME} beside "
                f"{min(beside)}; move either into a folder of its own with its config.json"
            )
        return _checkpoint(name, folder, "packed", (folder / PACKED_NAME,))
    if SINGLE_NAME in files:
        if INDEX_NAME in files:
            logger.warning("%s is read, the index beside it is not", folder / SINGLE_NAME)
        return _checkpoint(name, folder, "hf", (folder / SINGLE_NAME,))
    if INDEX_NAME in files:
        return _checkpoint(name, folder, "hf", _indexed(folder / INDEX_NAME, files))
    bases = npz_names(folder)
    if len(bases) == 1:
        base = folder / bases.pop()
        return _checkpoint(name, folder, "npz", (base,) if base.is_file() else _pieces(base))
    if bases:
        raise CheckpointError(
            f"a folder must hold one .npz, {folder} holds {', '.join(sorted(bases))}; name the file"
        )
    if _ADAPTER_SIGN in files:
        raise AdapterInPlaceError(folder)
    others = _without_index(folder, files)
    if others:
        named = few([path.name for path in others])
        logger.warning("%s has no index; what it holds is read: %s", folder, named)
        return _checkpoint(name, folder, "hf", others)
    if below := _below(folder):
        logger.warning("%s holds no model itself, the one in %s is read", folder, below)
        return _in_readable_folder(name, below)
    raise CheckpointError(
        f"a model folder must hold {SINGLE_NAME}, {INDEX_NAME} or an .npz, {folder} holds "
        f"{contents(folder)}"
    )


def _below(folder: Path) -> Path | None:
    """The one folder in it that holds a model or an adapter; of the hub's cache, the snapshot.

    Raises:
        CheckpointError: there are several, as after a training.
    """
    snapshots = folder / "snapshots"
    inner = snapshots if snapshots.is_dir() else folder
    found = [
        one
        for one in itertools.islice(inner.iterdir(), _MAX_BELOW)
        if one.is_dir() and any((one / sign).is_file() for sign in _SIGNS)
    ]
    main = folder / "refs" / "main"
    if len(found) > 1 and inner == snapshots and main.is_file():
        with main.open(errors="replace") as file:
            commit = file.read(64).strip()
        found = [one for one in found if one.name == commit] or found
    if len(found) < 2:
        return found[0] if found else None
    found.sort(key=lambda one: (int((re.findall(r"\d{1,9}", one.name) or [0])[-1]), one.name))
    raise CheckpointError(
        f"a model folder must hold one model, {folder} holds several in folders: "
        f"{few([one.name for one in found], 5)}; name one of them, such as {found[-1]}"
    )


def _without_index(folder: Path, files: set[str]) -> tuple[Path, ...]:
    """Safetensors under other names than a model has, in order; a series must be complete."""
    names = sorted(name for name in files - {*CODECS} if name.endswith(".safetensors"))
    series = [match for match in map(_SHARD.fullmatch, names) if match]
    wanted = {
        f"{stem}-{number:0{len(count)}}-of-{count}.safetensors"
        for stem, _, count in (match.groups() for match in series)
        for number in range(1, min(int(count), _MAX_SHARDS) + 1)
    }
    if missing := sorted(wanted - files):
        raise CheckpointError(
            f"every file of a series must be there, {folder} misses {few(missing)}; "
            "finish the download"
        )
    return tuple(folder / name for name in names)


def npz_names(folder: Path) -> set[str]:
    """Names of a folder's npz files that may hold a model; of pieces, the name of the whole."""
    return {
        re.sub(r"\.part[^/]*$", "", path.name)
        for path in folder.glob("*.npz*")
        if path.name not in CODECS and path.is_file()
    }


def _indexed(index: Path, files: set[str]) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} must list its files under weight_map; fetch it again")
    names = sorted({str(name) for name in weight_map.values()})
    if len(names) > _MAX_SHARDS or any(Path(name).name != name for name in names):
        raise CheckpointError(
            f"{index} may name at most {_MAX_SHARDS} files beside it, without folders; fetch it "
            "again from its publisher"
        )
    missing = [name for name in names if name not in files]
    if len(missing) == len(names) and (others := _without_index(index.parent, files)):
        shown = few([path.name for path in others])
        logger.warning(
            "no file that %s names is here; those that are here are read: %s", index, shown
        )
        return others
    if missing:
        raise CheckpointError(
            f"every file that {index} names must be there, missing: {few(missing)}; "
            "finish the download"
        )
    return tuple(index.parent / name for name in names)


def _checkpoint(
    name: str, folder: Path, layout: Layout | Literal["packed"], weights: tuple[Path, ...]
) -> Checkpoint:
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
