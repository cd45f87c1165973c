"""WebDataset shards: tar files in which `key.jpg` and `key.json` or `key.txt` follow each other.

Only the places of the pictures are kept, so rows are read in any order without unpacking.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paligemma.errors import DataError, ImageError, PromptError
from paligemma.processing.folders import SUFFIXES
from paligemma.processing.image import MAX_ENCODED_BYTES, load_image
from paligemma.tasks.own.columns import texts_of
from paligemma.tasks.own.found import SPLITS, Found, OwnForm, split_names
from paligemma.tasks.own.json_lines import row_example
from paligemma.tasks.own.labels import OwnRow, RowError
from paligemma.tasks.reading.file_rows import FileRow, require_object
from paligemma.tasks.reading.files import parse_json

NAME = "WebDataset"
LOOKS_FOR = "train-*.tar, train.tar or train/*.tar"
_ENDS = (".tar", ".tar.gz", ".tgz")
_PICTURES = ("jpg", "jpeg", "png", "webp")
# Taken where a row has none of those, beside which they are masks or depths.
_RARE_PICTURES = frozenset(suffix[1:] for suffix in SUFFIXES) - {*_PICTURES}
_TEXTS = ("json", "txt")
_KINDS = _RARE_PICTURES | {*_PICTURES, *_TEXTS}
# Of the files that hold what macOS keeps beside each file.
_OF_SYSTEM = "._"
_MAX_TEXT_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TarPicture:
    """An encoded picture inside a tar file, turned as its EXIF says.

    Attributes:
        path: the tar file.
        name: name of the picture in it.
        start: first byte of the picture.
        num_bytes: its length.
    """

    path: Path
    name: str
    start: int
    num_bytes: int

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3]; raise ImageError where that fails."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.num_bytes)
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(data) < self.num_bytes:
            raise ImageError(f"{self.path} ends inside {self.name}; download it again")
        return load_image(data, max_pixels=max_pixels)


def find(data: Path, split: str, form: OwnForm) -> Found | None:
    """Find the shards of a split; a file, or all shards of a folder without splits, are `train`."""
    if data.is_file():
        paths = [data] if data.name.endswith(_ENDS) else []
    else:
        paths = _named(data, *split_names(split))
        if not paths and split == "train" and not _named(data, *split_names(*SPLITS)):
            paths = _named(data, "*")
    if not paths:
        return None
    return Found(format=NAME, path=paths[0], rows=partial(_rows, paths, form))


def _named(data: Path, *names: str) -> list[Path]:
    patterns = ("{}", "{}-*", "{}_*", "{}/*") if names != ("*",) else ("*",)
    stems = [pattern.format(name) for pattern in patterns for name in names]
    found = {path for stem in stems for end in _ENDS for path in data.glob(stem + end)}
    return sorted(path for path in found if path.is_file())


def _rows(paths: list[Path], form: OwnForm) -> Iterator[OwnRow]:
    for path in paths:
        if not path.name.endswith(".tar"):
            raise DataError(
                f"{path} must be a plain tar file, whose pictures can be read in any order; unpack "
                f"it with gunzip {path.name}"
            )
        number = 0
        try:
            for key, group in row_groups(path):
                number += 1
                yield _row(path, key, group, number, form)
        except (tarfile.TarError, OSError, EOFError) as error:
            yield RowError(
                "row", f"{path}, after {number} rows: it is no whole tar file ({error}); download "
                "it again",
            )  # fmt: skip


# Ending, place and content of a text, of each part of a row.
Part = tuple[str, tarfile.TarInfo, bytes]


def row_groups(path: Path, start: int = 0) -> Iterator[tuple[str, list[Part]]]:
    """The parts of each row: members that follow each other and share a name up to its first dot.

    Args:
        start: byte of the tar file at which a member begins, from which rows are read.

    Raises:
        TarError, OSError, EOFError: the file is damaged; rows before that come first.
    """
    key: str | None = None
    group: list[Part] = []
    damage: Exception | None = None
    with path.open("rb") as file, tarfile.open(fileobj=_at(file, start), mode="r:") as archive:
        while damage is None:
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, EOFError) as error:
                damage = error
                continue
            archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
            if member is None:
                damage = _wrong_end(path, archive.offset)
                break
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            kind = ending.rpartition(".")[2].lower()
            if member.isdir() or kind not in _KINDS or name.startswith(_OF_SYSTEM):
                continue
            found = f"{folder}/{stem}" if folder else stem
            if found != key and key is not None:
                yield key, group
                group = []
            key = found
            content = b""
            if (
                kind in _TEXTS
                and member.isreg()
                and (inside := archive.extractfile(member)) is not None
            ):
                content = inside.read(_MAX_TEXT_BYTES + 1)
            group.append((kind, member, content))
    if key is not None:
        yield key, group
    if damage is not None:
        raise damage


def _at(file: BinaryIO, start: int) -> BinaryIO:
    file.seek(start)
    return file


def _wrong_end(path: Path, end: int) -> tarfile.TarError | None:
    """What is wrong behind the last member, where all must be zeros; the library ends without a
    word at anything else."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE or any(block):
            return tarfile.ReadError(f"no end mark, and no further row, at byte {end}")
        while piece := file.read(_PIECE_BYTES):
            if piece.strip(b"\0"):
                return tarfile.ReadError(
                    f"its end mark is at byte {end}, and more follows, as where files were joined"
                )
    return None


def _row(path: Path, key: str, group: list[Part], number: int, form: OwnForm) -> OwnRow:
    where = f"{path}, {key[:100]}"
    try:
        fields, pictures = read_group(path, where, group)
        prefix, texts = texts_of(row := FileRow(fields, where, number), form)
        return row_example(row, f"{path.stem}/{number}", pictures, prefix, *texts)
    except RowError as error:
        return error
    except (DataError, PromptError) as error:
        said = str(error)
        return RowError("row", said if where in said else f"{where}: {said}")


def read_group(
    path: Path, where: str, group: list[Part]
) -> tuple[dict[str, Any], tuple[TarPicture, ...]]:
    """Fields and pictures of one row, by the parts that `row_groups` found.

    Raises:
        DataError: no picture, a link, two parts of one name, a part beyond its bound, or a text
            that cannot be read.
    """
    fields: dict[str, Any] = {}
    pictures = []
    taken = _RARE_PICTURES if all(kind not in _PICTURES for kind, _, _ in group) else _PICTURES
    if len({member.name for _, member, _ in group}) < len(group):
        raise RowError("row", f"{where}: two of its parts have one name; remove one")
    for kind, member, content in group:
        if not member.isreg():
            raise RowError(
                "row",
                f"{where}: {member.name[-80:]} is a link or a device; pack the file itself, as "
                "tar --dereference --hard-dereference does",
            )
        bound = _MAX_TEXT_BYTES if kind in _TEXTS else MAX_ENCODED_BYTES
        if member.size > bound or member.issparse():
            raise RowError(
                "row",
                f"{where}: {member.name[-80:]} may have {bound} bytes in one piece, it has "
                f"{member.size}; remove it",
            )
        if kind in taken:
            pictures.append(
                TarPicture(
                    path=path,
                    name=member.name,
                    start=member.offset_data,
                    num_bytes=member.size,
                )
            )
        elif kind == "json":
            fields = {**fields, **require_object(parse_json(content, where), where)}
        elif kind == "txt":
            try:
                fields.setdefault("text", content.decode().strip())
            except UnicodeDecodeError as error:
                raise RowError("row", f"{where}: {error}") from error
    if not pictures:
        raise RowError(
            "picture", f"{where}: a row needs a picture, {', '.join(_PICTURES)}, it has none"
        )
    return fields, tuple(pictures)
