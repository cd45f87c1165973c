"""Reads the parquet copies of benchmarks, recognised by their columns; see `hub_columns.py`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import DataError
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.hub_columns import HubCopy, needed_columns
from paligemma.tasks.reading.parquet import ParquetPicture, open_parquet, parquet_rows

logger = logging.getLogger(__name__)

# A row with the names of the official fields, and its picture.
CopyRow = tuple[FileRow, ParquetPicture]

# The copies of the largest benchmark, VQAv2, have some two hundred files.
MAX_TABLES = 5_000
# Folders below the data folder; a hub's cache has four: snapshots, a commit, a subset, a split.
MAX_DEPTH = 4
_NUM_NAMED = 12
_SHARD = re.compile(r"-\d+-of-\d+.*$")
_SERIES = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9}).*")
_YEAR = re.compile(r"20\d\d$")
_WORDS = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
_COMMON_PARTS = frozenset({"train", "val", "test", "testdev", "restval"})


@dataclass(frozen=True, kw_only=True)
class Table:
    """One parquet file of a copy.

    Attributes:
        part: name of its part, where the file or a folder above it has one.
        columns: field -> the column that holds it.
        picture: column of the picture; None where it lies in another table.
    """

    path: Path
    part: str | None
    columns: dict[str, str]
    picture: str | None


def parquet_files(data: Path) -> list[Path]:
    """The parquet files of a data folder, a few folders deep, or the file itself."""
    if data.is_file():
        return [data] if data.suffix == ".parquet" else []
    found = []
    for place, folders, names in os.walk(data, followlinks=True):
        depth = len(Path(place).relative_to(data).parts)
        folders[:] = [one for one in folders if depth < MAX_DEPTH and not one.startswith(".")]
        found += [Path(place) / one for one in names if one.endswith(".parquet")]
    # A link to nothing stays, to be named; a pipe would be waited for without an end.
    kept = (path for path in found if path.is_file() or not path.exists())
    return sorted(path for path in kept if not path.name.startswith("."))[:MAX_TABLES]


def copy_tables(data: Path, copy: HubCopy) -> list[Table]:
    """The parquet files of a data folder that have the columns of a copy."""
    known = _parts_of(copy)
    found = (_table(path, data, copy, known) for path in parquet_files(data))
    return [table for table in found if table is not None]


def copy_rows(data: Path, split: str, copy: HubCopy, tables: Sequence[Table]) -> Iterator[CopyRow]:
    """Stream the rows of one split, part after part.

    A row has the official fields that are not null, `part` and `number`, its place in its part.

    Args:
        tables: what `copy_tables` found, at least one.

    Raises:
        DataError: no file belongs to the split, or those of one part lie in several folders.
    """
    elsewhere = _PictureTable(data, copy.joined_by)
    for part, own in _in_parts(data, split, copy, tables):
        number = 0
        for table in own:
            for in_file, (group, place, record) in enumerate(
                parquet_rows(table.path, [*dict.fromkeys(table.columns.values())]), start=1
            ):
                fields = {name: record[column] for name, column in table.columns.items()}
                fields = {name: value for name, value in fields.items() if value is not None}
                where = f"{table.path}, row {in_file}"
                row = FileRow({**fields, "part": part}, where, number)
                number += 1
                if table.picture is not None:
                    picture = ParquetPicture(
                        path=table.path, row_group=group, row=place, column=table.picture
                    )
                else:
                    picture = elsewhere.find(row)
                yield row, picture


def unread_copy(data: Path, copy: HubCopy | None) -> str | None:
    """What to say of parquet files that are not read; None where there are none."""
    paths = parquet_files(data)
    if not paths:
        return None
    if copy is None:
        return f"{paths[0]} is a parquet file, and no parquet copy of this benchmark is read"
    names = ", ".join(_columns_in(paths[0])[:_NUM_NAMED])
    return f"{paths[0]} has the columns {names}; {needed_columns(copy)}"


class _PictureTable:
    """Pictures by their id, in tables of the columns `id` and `image` alone."""

    def __init__(self, data: Path, name_field: str | None) -> None:
        self._data, self._name_field = data, name_field or ""
        self._found: dict[str, ParquetPicture] = {}
        for path in parquet_files(data) if name_field else ():
            names = _columns_in(path)
            if "id" in names and "image" in names and "question" not in names:
                for group, place, record in parquet_rows(path, ["id"]):
                    picture = ParquetPicture(path=path, row_group=group, row=place)
                    self._found.setdefault(str(record["id"]), picture)

    def find(self, row: FileRow) -> ParquetPicture:
        name = row.identifier(self._name_field)
        if name not in self._found:
            raise row.error(
                f"the picture {name!r:.80} must lie in a parquet file with the columns id and "
                f"image below {self._data}; download the folder of the pictures too"
            )
        return self._found[name]


def _columns_in(path: Path) -> tuple[str, ...]:
    return tuple(open_parquet(path).schema_arrow.names)


def _table(path: Path, data: Path, copy: HubCopy, known: frozenset[str]) -> Table | None:
    names = _columns_in(path)

    def first(candidates: str) -> str | None:
        return next((one for one in candidates.split("|") if one in names), None)

    picture = first(copy.picture)
    columns = {field: first(given) for field, given in copy.columns.items()}
    if None in columns.values() or (picture is None and copy.joined_by is None):
        return None
    if any(one in names for one in copy.unless):
        return None
    columns |= {field: first(given) for field, given in copy.optional.items()}
    return Table(
        path=path,
        part=_part_of(path, data, known),
        columns={field: column for field, column in columns.items() if column is not None},
        picture=picture,
    )


def _part_of(path: Path, data: Path, known: frozenset[str]) -> str | None:
    """The part that the name of a file, or else of a folder around it, spells."""
    stem = _SHARD.sub("", path.stem)
    folders = [one.name for one in path.parents if data in one.parents]
    for name in (stem, *folders):
        if (whole := _plain(name)) in known:
            return whole
        words = {_plain(word) for word in re.split(r"[-_. ]", name)} & known
        if len(words) == 1:
            return words.pop()
    return None


def _plain(name: str) -> str:
    word = _YEAR.sub("", name.lower()).replace("-", "").replace("_", "")
    return _WORDS.get(word, word)


def _parts_of(copy: HubCopy) -> frozenset[str]:
    named = " ".join(one for several in copy.parts.values() for one in several)
    return _COMMON_PARTS | set(named.split())


def _in_parts(
    data: Path, split: str, copy: HubCopy, tables: Sequence[Table]
) -> Iterator[tuple[str, list[Table]]]:
    """The parts of a split in their order, each with its files in the order of their names."""
    choices = [one.split() for one in copy.parts.get(split, (_plain(split),))]
    there = {table.part for table in tables}
    if [] in choices:
        yield "", _of_one_folder(data, list(tables), copy)
        return
    wanted = next((parts for parts in choices if there.intersection(parts)), None)
    alone = next((parts for parts in choices if len(parts) == 1), None)
    if wanted is None and alone is not None and there == {None}:  # the user names the split
        yield alone[0], _of_one_folder(data, list(tables), copy)
        return
    if wanted is None:
        held = ", ".join(sorted(part or "no name of a split" for part in there))
        raise DataError(
            f"the split {split} needs parquet files of {' and '.join(choices[0])} in {data}, which "
            f"has those of {held}; download them, or name another split with --split"
        )
    if missing := [part for part in wanted if part not in there]:
        logger.warning("%s: its copy lacks %s; figures are of the rest", data, ", ".join(missing))
    for part in wanted:
        if part in there:
            yield part, _of_one_folder(data, [one for one in tables if one.part == part], copy)


def _of_one_folder(data: Path, tables: list[Table], copy: HubCopy) -> list[Table]:
    folders = sorted({table.path.parent for table in tables})
    if len(folders) > 1 and copy.folder:
        folders = [one for one in folders if copy.folder in str(one.relative_to(data))] or folders
    if len(folders) > 1:
        places = " and ".join(str(one) for one in folders[:2])
        raise DataError(
            f"one part of a copy must lie in one folder, {places} both hold it; name one of them "
            "with --data"
        )
    own = [table for table in tables if table.path.parent == folders[0]]
    _require_series(own)
    return own


def _require_series(tables: Sequence[Table]) -> None:
    """Warn where files are numbered and not all of a series are there.

    Raises:
        DataError: two have one number, as a file that was downloaded twice.
    """
    numbers: dict[tuple[str, int], dict[int, Path]] = {}
    for table in tables:
        if series := _SERIES.fullmatch(table.path.stem):
            there = numbers.setdefault((series[1], int(series[3])), {})
            other = there.setdefault(int(series[2]), table.path)
            if other != table.path:
                raise DataError(
                    f"a file of a copy is there once, {other.name} and {table.path.name} in "
                    f"{other.parent} have one number; remove one of them"
                )
    for (name, total), there in numbers.items():
        if len(there) < total:
            logger.warning(
                "%s: %d of the %d files of %s are there; figures are of these",
                tables[0].path.parent,
                len(there),
                total,
                name,
            )
