"""The rows of parquet files as an input, one group of rows after another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.example import Picture
from paligemma.jobs.labelling.inputs import (
    MAX_NAME,
    START,
    InputRow,
    Place,
    bad_row,
    identity_of,
    is_of_system,
    lost_row,
    named_picture,
)
from paligemma.tasks.own.parquet import UprightParquetPicture
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.parquet import open_parquet

_READ_ROWS = 1024
# Types of columns that are names.
_TEXTS = ("string", "large_string", "string_view")


class _OnlyPicture(UprightParquetPicture):
    """The picture of a row that has one alone."""

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3]; raise ImageError where that fails, or there are several."""
        cell = self.cell()
        if isinstance(cell, list) and len(cell) > 1:
            raise ImageError(
                f"a row has one picture, row {self.row} of group {self.row_group} in {self.path} "
                f"has {len(cell)}; make a row of each, or name them in a .jsonl file as frames"
            )
        return super().read(max_pixels)


@dataclass(frozen=True, kw_only=True)
class Parquet:
    """Rows of parquet files, whose pictures stay there; a place is (file, group of rows, row).

    Attributes:
        paths: the files in order.
        folder: folder of pictures that the column only names; None takes that of each file.
        column: column of pictures: bytes, objects of `bytes` and `path`, or names.
        columns: further columns that are read, where a file has them.
    """

    paths: tuple[Path, ...]
    folder: Path | None = None
    column: str = "image"
    columns: tuple[str, ...] = ()

    def identity(self) -> list[Any]:
        """See `Input.identity`."""
        return identity_of(self.paths)

    def folders(self) -> list[str]:
        """See `Input.folders`."""
        return [] if self.folder is None else [os.path.abspath(self.folder)]

    def rows(self, start: Place = START) -> Iterator[tuple[Place, InputRow]]:
        """See `Input.rows`."""
        for number in range(start[0], len(self.paths)):
            path = self.paths[number]
            try:
                file = open_parquet(path)
                wanted = self._wanted(path, file.schema_arrow)
            except DataError as error:
                if number == 0 or is_of_system(error.__cause__):
                    raise
                yield (number, 0, 0), lost_row(path.name, str(path), error)
                continue
            first, skipped = (*start[1:], 0)[:2] if number == start[0] else (0, 0)
            for group in range(first, file.num_row_groups):
                place, before = 0, skipped if group == first else 0
                where = f"{path}, group {group} of its rows"
                try:
                    for records in _records(file, group, wanted):
                        for fields in records:
                            if place >= before:
                                yield (number, group, place), self._row(path, group, place, fields)
                            place += 1
                except (OSError, ValueError) as error:
                    damage = DataError(f"{where}, is damaged ({str(error)[:200]})")
                    if is_of_system(error):
                        raise damage from error
                    for lost in range(max(place, before), file.metadata.row_group(group).num_rows):
                        name = f"{path.name}/{group}/{lost}"
                        yield (number, group, lost), lost_row(name, where, damage)

    def _wanted(self, path: Path, schema: Any) -> list[str]:
        """Columns that a plan reads: of pictures only their names."""
        import pyarrow as pa

        if schema.names.count(self.column) != 1:
            raise DataError(
                f"{path}: one column must be {self.column}, there are "
                f"{', '.join(schema.names)[:200]}; name it with --image-column"
            )
        kind = schema.field(self.column).type
        if pa.types.is_dictionary(kind):  # as tables write categories
            kind = kind.value_type
        found = [one for one in self.columns if one in schema.names and one != self.column]
        if pa.types.is_struct(kind) and any(one.name == "path" for one in kind):
            found.append(f"{self.column}.path")
        elif str(kind) in _TEXTS:
            found.append(self.column)
        return found

    def _row(self, path: Path, group: int, place: int, fields: Mapping[str, Any]) -> InputRow:
        where = f"{path}, group {group}, row {place}"
        found = fields.get(self.column)
        named = found.get("path") if isinstance(found, dict) else None
        name = named or f"{path.name}/{group}/{place}"
        row = FileRow(fields, where)
        try:
            if isinstance(found, str):
                picture: Picture = named_picture(self.folder or path.parent, found, where)
                return InputRow(name=found, pictures=(picture,), fields=row)
        except DataError as error:
            return bad_row(str(found)[:MAX_NAME], where, error)
        picture = _OnlyPicture(path=path, row_group=group, row=place, column=self.column)
        return InputRow(name=str(name)[:MAX_NAME], pictures=(picture,), fields=row)


def _records(file: Any, group: int, wanted: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The wanted columns of a group of rows, some rows at a time."""
    if not wanted:
        yield [{}] * file.metadata.row_group(group).num_rows
        return
    for batch in file.iter_batches(_READ_ROWS, row_groups=[group], columns=wanted):
        yield batch.to_pylist()
