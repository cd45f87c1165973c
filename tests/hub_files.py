"""Small parquet copies of benchmarks in the columns of the hub, for tests of their reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(path: Path) -> dict[str, Any]:
    """A picture as a data set of the hub stores it."""
    return {"bytes": path.read_bytes(), "path": None}


def write_copy(path: Path, rows: Sequence[Mapping[str, Any]], *, picture: str = "image") -> Path:
    """One parquet file with a row group for every two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    columns = {
        name: pa.array([row[name] for row in rows], _IMAGE if name == picture else None)
        for name in names
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path
