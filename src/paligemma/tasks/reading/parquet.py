"""Parquet files with encoded pictures in a column."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.metrics.extras import missing_extra
from paligemma.processing.image import load_as_original, open_heading

# Pictures of one group of rows are read together, and those of a few groups are kept.
MAX_GROUP_BYTES = 4 << 30
_KEPT_BYTES = 512 << 20
_BATCH_ROWS = 64
# How a file begins that stands for another which was not fetched.
_POINTER = b"version https://git-lfs"


def open_parquet(path: Path) -> Any:
    """Open a file as `pyarrow.parquet.ParquetFile`.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: it is no parquet file.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", f"reading {path.name}") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        if _is_pointer(path):
            raise DataError(
                f"{path} is a pointer of Git LFS and not the file; run `git lfs pull` there"
            ) from error
        raise DataError(
            f"{path} is no parquet file ({str(error)[:200]}); download it again"
        ) from error


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def parquet_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Read some columns of a file: (group of rows, place in it, values by column) of each row.

    Raises:
        DataError: the file is damaged.
    """
    file = open_parquet(path)
    for group in range(file.num_row_groups):
        place = 0
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)
        while True:
            try:
                batch = next(batches, None)
                records = None if batch is None else batch.to_pylist()
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}, group {group} of its rows, is damaged ({str(error)[:200]}); download "
                    "it again"
                ) from error
            if records is None:
                break
            for record in records:
                yield group, place, record
                place += 1


class _Groups:
    """Columns of pictures that were read last, by file, group and name; safe for threads."""

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def column(self, path: Path, group: int, name: str) -> Any:
        with self._lock:
            key = (path, _stamp(path), group, name)
            if key not in self._columns:
                self._columns[key] = _read_column(path, group, name)
                while len(self._columns) > 1 and self._num_bytes() > _KEPT_BYTES:
                    self._columns.popitem(last=False)
            self._columns.move_to_end(key)
            return self._columns[key]

    def _num_bytes(self) -> int:
        return sum(column.nbytes for column in self._columns.values())


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What differs once a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


_groups = _Groups()


def _read_column(path: Path, group: int, name: str) -> Any:
    try:
        file = open_parquet(path)
        found = file.metadata.row_group(group)
        chunks = (found.column(k) for k in range(found.num_columns))
        size = sum(
            one.total_uncompressed_size
            for one in chunks
            if one.path_in_schema.split(".")[0] == name
        )
        if size > MAX_GROUP_BYTES:
            raise ImageError(
                f"{path}: a group of rows may hold {MAX_GROUP_BYTES} bytes of pictures, group "
                f"{group} has {size}; write the file again in groups of a hundred rows"
            )
        return file.read_row_group(group, columns=[name]).column(name)
    except (OSError, ValueError, DataError) as error:
        raise ImageError(f"{path}, group {group}: {str(error)[:300]}") from error


@dataclass(frozen=True, kw_only=True)
class ParquetPicture:
    """The encoded picture in one row of a parquet file.

    Attributes:
        column: its column, of bytes or of objects with the field `bytes`, as they are or in a list.
        quarter_turns: counter-clockwise turns that make the stored pixels upright.
    """

    path: Path
    row_group: int
    row: int
    column: str = "image"
    quarter_turns: int = 0

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3], as stored; raise ImageError where that fails."""
        image = load_as_original(self.encoded(), max_pixels=max_pixels)
        return np.ascontiguousarray(np.rot90(image, self.quarter_turns))

    def encoded(self) -> bytes:
        """The bytes of the picture; raise ImageError where there are none."""
        cell = self.cell()
        if isinstance(cell, list):
            cell = cell[0] if cell else None
        found = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(found, bytes) and found:
            return found
        name = cell.get("path") if isinstance(cell, dict) else None
        only = f", only the name {name!r:.100}" if name else ""
        raise ImageError(
            f"{self.path}: row {self.row} of group {self.row_group} has no image{only}"
        )

    def cell(self) -> Any:
        """What the column holds; raise ImageError where the file cannot be read."""
        column = _groups.column(self.path, self.row_group, self.column)
        if self.row >= len(column):
            raise ImageError(f"{self.path} was replaced while it was read; begin again")
        return column[self.row].as_py()

    def is_there(self) -> bool:
        """Whether the row holds a picture."""
        try:
            return bool(self.encoded())
        except ImageError:
            return False

    def stored_size_hw(self) -> tuple[int, int]:
        """Read height and width as stored, from the heading alone.

        Raises:
            DataError: no picture there.
        """
        try:
            with open_heading(BytesIO(self.encoded())) as picture:
                width, height = picture.size
        except Exception as error:  # damaged headings raise whatever a plugin stumbles over
            raise DataError(
                f"{self.path}, row {self.row} of group {self.row_group} must hold a picture: "
                f"{str(error)[:200]}"
            ) from error
        return height, width
