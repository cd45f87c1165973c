"""Parquet files with encoded pictures in a column."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.metrics.extras import missing_extra
from paligemma.processing.image import load_as_original


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
        raise DataError(
            f"{path} is no parquet file ({str(error)[:200]}); download it again"
        ) from error


# A table of a few hundred pictures is one or two groups of tens of megabytes; rows come in order.
@lru_cache(maxsize=1)
def encoded_pictures(path: Path, row_group: int, name: str = "image") -> list[bytes | None]:
    """The bytes of a column in one group of rows, as they are or in the field `bytes`."""
    column = open_parquet(path).read_row_group(row_group, columns=[name]).column(name)
    return [one.get("bytes") if isinstance(one, dict) else one for one in column.to_pylist()]


@dataclass(frozen=True, kw_only=True)
class ParquetPicture:
    """The encoded picture in one row of a parquet file, in its column `image`."""

    path: Path
    row_group: int
    row: int

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3], as stored; raise ImageError where that fails."""
        return load_as_original(self.encoded(), max_pixels=max_pixels)

    def encoded(self) -> bytes:
        """The bytes of the picture; raise ImageError where there are none."""
        found = encoded_pictures(self.path, self.row_group)[self.row]
        if not found:
            raise ImageError(f"{self.path}: row {self.row} of group {self.row_group} has no image")
        return found
