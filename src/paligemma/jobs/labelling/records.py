"""Labelled rows as lines of JSON and as parquet: the same bytes wherever they are made."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from paligemma.errors import ConfigError, DataError
from paligemma.json_file import parse_json
from paligemma.metrics.extras import missing_extra
from paligemma.tasks.reading.parquet import open_parquet

Record: TypeAlias = dict[str, Any]
FORMATS = ("jsonl", "parquet")


def encoded(records: Sequence[Record], form: str) -> bytes:
    """The content of one file of labelled rows.

    Raises:
        ConfigError: no such form.
        MissingExtraError: pyarrow is not installed.
    """
    if form == "jsonl":
        return "".join(json.dumps(one, allow_nan=False) + "\n" for one in records).encode()
    if form != "parquet":
        raise ConfigError(f"rows are written as one of {', '.join(FORMATS)}, got {form!r:.80}")
    pa = _pyarrow()
    import pyarrow.parquet as parquet

    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(records), schema=schema()), file)
    return file.getvalue()


def schema() -> Any:
    """Columns of the parquet files; `detections` as `outputs.words.detections_json` has them."""
    pa = _pyarrow()
    numbers = pa.list_(pa.float64())
    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    found = pa.struct(
        [
            ("label", pa.string()),
            ("score", pa.float64()),
            ("box_xyxy_px", numbers),
            ("box_yxyx", numbers),
            ("mask", mask),
            ("valid", pa.bool_()),
        ]
    )
    return pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("image", pa.string()),
            ("prompt", pa.string()),
            ("text", pa.string()),
            ("logprob", pa.float64()),
            ("num_tokens", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("detections", pa.list_(found)),
            ("note", pa.string()),
            ("seconds", pa.float64()),
            ("key", pa.string()),
        ]
    )


def read_records(path: Path) -> Iterator[Record]:
    """The labelled rows of one file; what is null is left out.

    Raises:
        DataError: the file is damaged; names it.
    """
    if path.suffix == ".parquet":
        for batch in open_parquet(path).iter_batches(256):
            for record in batch.to_pylist():
                yield _without_nulls(record)
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                record = parse_json(line)
                if not isinstance(record, dict):
                    raise DataError(f"{path}, line {number} is no JSON object; restore the file")
                yield record
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it") from error


def _without_nulls(record: Mapping[str, Any]) -> Record:
    kept = {name: value for name, value in record.items() if value is not None}
    for name in ("detections",):
        if name in kept:
            kept[name] = [
                {key: one for key, one in found.items() if one is not None or key in _SHOWN}
                for found in kept[name]
            ]
    return kept


# Fields of an object that stand there even where nothing is known.
_SHOWN = ("label", "score")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", "a parquet file") from error
    return pyarrow
