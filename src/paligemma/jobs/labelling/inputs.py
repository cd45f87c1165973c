"""The rows of an input, readable from any place on: no row is held, and none is read twice.

A place is a few whole numbers, such as the number of a file and a byte in it, so that a run of a
million rows goes on from its middle at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from paligemma.errors import DataError, PaliGemmaError
from paligemma.example import Picture
from paligemma.json_file import parse_json
from paligemma.processing.image import load_image
from paligemma.tasks.own.labels import UprightPicture
from paligemma.tasks.own.webdataset import read_group, row_groups
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.files import relative_name

logger = logging.getLogger(__name__)

Place: TypeAlias = tuple[int, ...]
START: Place = (0, 0)
# A line with its prompt and fields; pictures are named, not held.
_MAX_LINE_BYTES = 16 << 20
# Characters of a picture's name that are kept.
MAX_NAME = 1000
_PROBED_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class InputRow:
    """One row of an input.

    Attributes:
        name: the picture, as the input names it.
        pictures: one; several are the frames of one example; none where the row is bad.
        fields: further fields, for templates; with the place of the row, for errors.
        error: why the row cannot be asked; None where it can.
    """

    name: str
    pictures: tuple[Picture, ...]
    fields: FileRow
    error: str | None = None


class Input(Protocol):
    """Rows in a fixed order."""

    def identity(self) -> list[Any]:
        """Names, sizes and some bytes of its files, as JSON: what must not change under a run.

        Raises:
            DataError: a file is missing.
        """
        ...

    def folders(self) -> list[str]:
        """Folders from which its files name pictures, as absolute paths; also part of what must
        not change."""
        ...

    def rows(self, start: Place = START) -> Iterator[tuple[Place, InputRow]]:
        """Each row from `start` on, with its place; what is damaged is a bad row, or several.

        Raises:
            DataError: the system does not read a file, or the first one is of another kind.
        """
        ...


def identity_of(paths: Sequence[Path]) -> list[Any]:
    """See `Input.identity`."""
    return [[path.name, *_probe(path)] for path in paths]


def _probe(path: Path) -> tuple[int, str]:
    """Size and a hash of the beginning and the end of a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256()
            for at in (0, max(0, size - _PROBED_BYTES)):
                file.seek(at)
                digest.update(file.read(_PROBED_BYTES))
    except OSError as error:
        raise DataError(f"{path} must be a file that can be read ({error.strerror})") from error
    return size, digest.hexdigest()[:16]


def bad_row(name: str, where: str, error: object) -> InputRow:
    """A row that cannot be asked, and where in the input it stands."""
    said = str(error)
    words = said if where in said else f"{where}: {said}"
    return InputRow(name=name, pictures=(), fields=FileRow({}, where), error=words)


def lost_row(name: str, where: str, error: DataError) -> InputRow:
    """A row in the place of what is damaged, of which a warning tells, too."""
    logger.warning("%s", error)
    return bad_row(name, where, error)


def is_of_system(error: BaseException | None) -> bool:
    """Whether the system failed, which may pass, and not the content, which stays as it is."""
    return isinstance(error, OSError) and error.errno is not None


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """Lines such as `{"image": "a/1.jpg", "question": "..."}`; a place is (file, byte).

    Attributes:
        paths: the files in order.
        folder: folder that all pictures lie below; None takes that of each file.
        column: field with the name of the picture, or a list of names: frames of one example.
        known: what else tells this input from another.
        is_listing: whether its names were found below the folder, and are no data of others.
    """

    paths: tuple[Path, ...]
    folder: Path | None = None
    column: str = "image"
    known: tuple[Any, ...] = ()
    is_listing: bool = False

    def identity(self) -> list[Any]:
        """See `Input.identity`."""
        return [*identity_of(self.paths), *self.known]

    def folders(self) -> list[str]:
        """See `Input.folders`."""
        folders = [self.folder or path.parent for path in self.paths]
        return list(dict.fromkeys(map(os.path.abspath, folders)))

    def rows(self, start: Place = START) -> Iterator[tuple[Place, InputRow]]:
        """See `Input.rows`."""
        for number in range(start[0], len(self.paths)):
            path = self.paths[number]
            at = start[1] if number == start[0] else 0
            try:
                with path.open("rb") as file:
                    file.seek(at)
                    while line := file.readline(_MAX_LINE_BYTES):
                        begin, at = at, at + len(line)
                        if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                            while rest := file.readline(_MAX_LINE_BYTES):
                                at += len(rest)
                                if rest.endswith(b"\n"):
                                    break
                            where = f"{path}, byte {begin}"
                            rule = f"a line may have {_MAX_LINE_BYTES} bytes, this one has more"
                            yield (number, begin), bad_row("", where, rule)
                        elif line.strip():
                            yield (number, begin), self._row(path, begin, line)
            except OSError as error:
                raise DataError(f"{path} must be a readable file ({error}); check it") from error

    def _row(self, path: Path, begin: int, line: bytes) -> InputRow:
        where, name = f"{path}, byte {begin}", ""
        try:
            fields = parse_json(line)
            if not isinstance(fields, dict):
                raise DataError(f"a row is a JSON object, got {repr(fields)[:80]}")
            row = FileRow(fields, where)
            many = isinstance(fields.get(self.column), list)
            names = row.texts(self.column) if many else [row.text(self.column)]
            name = " ".join(names)[:MAX_NAME]
            if not names:
                raise row.error(f"{self.column!r} names no picture")
            folder = self.folder or path.parent
            if self.is_listing:
                listed = ListedPicture(path=folder / names[0])
                return InputRow(name=name, pictures=(listed,), fields=row)
            pictures = tuple(named_picture(folder, one, where) for one in names)
        except (ValueError, PaliGemmaError) as error:
            return bad_row(name, where, error)
        return InputRow(name=name, pictures=pictures, fields=row)


@dataclass(frozen=True, kw_only=True)
class ListedPicture:
    """A picture that was found in a folder: read from there alone, wherever links lead."""

    path: Path

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3]; raise ImageError where that fails."""
        return load_image(self.path, max_pixels=max_pixels)


def named_picture(folder: Path, name: str, where: str) -> UprightPicture:
    """The picture of a name from a folder; an absolute name is taken where it lies below it."""
    if os.path.isabs(name) and not os.path.relpath(name, folder).startswith(os.pardir):
        name = os.path.relpath(name, folder)
    return UprightPicture(path=folder / relative_name(name, where), folder=folder)


@dataclass(frozen=True, kw_only=True)
class TarShards:
    """WebDataset shards; a place is (file, byte of a member), or the damage behind that row.

    A row is named like its first picture; of several shards, which number their rows alike, the
    shard goes before it as a folder.
    """

    paths: tuple[Path, ...]

    def identity(self) -> list[Any]:
        """See `Input.identity`."""
        return identity_of(self.paths)

    def folders(self) -> list[str]:
        """See `Input.folders`; its pictures lie inside."""
        return []

    def rows(self, start: Place = START) -> Iterator[tuple[Place, InputRow]]:
        """See `Input.rows`."""
        for number in range(start[0], len(self.paths)):
            path = self.paths[number]
            at, skipped = (*start[1:], 0)[:2] if number == start[0] else (0, 0)
            folder, num = self._folder(path), 0
            try:
                for key, group in row_groups(path, at):
                    at, num = group[0][1].offset, num + 1
                    if num <= skipped:
                        continue
                    where = f"{path}, {key[:100]}"
                    try:
                        fields, pictures = read_group(path, where, group)
                        name = (folder + pictures[0].name)[:MAX_NAME]
                        row = InputRow(name=name, pictures=pictures, fields=FileRow(fields, where))
                    except DataError as error:
                        row = bad_row((folder + key)[:MAX_NAME], where, error)
                    yield (number, at), row
            except (tarfile.TarError, EOFError) as error:
                damage = DataError(
                    f"{path} is no whole tar file ({error}); its rows from here on are lost"
                )
                # Behind the last row, if there is one.
                yield (number, at, min(num, 1)), lost_row(path.name, str(path), damage)
            except OSError as error:
                raise DataError(f"{path} must be a readable file ({error}); check it") from error

    def _folder(self, path: Path) -> str:
        if len(self.paths) == 1:
            return ""
        top = os.path.commonpath([one.parent for one in self.paths])
        return os.path.relpath(path.with_suffix(""), top) + "/"


def listing_lines(names: Sequence[str]) -> Iterator[str]:
    """The lines that `JsonLines` reads, for files of pictures that were found by their place."""
    return (json.dumps({"image": name}) + "\n" for name in names)
