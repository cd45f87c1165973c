"""Parquet files with encoded pictures in a column."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.metrics.extras import missing_extra


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
