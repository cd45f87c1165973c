"""Parquet files of pictures with prompts and answers, as data sets of the hub have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import DataError, PromptError
from paligemma.example import Picture
from paligemma.processing.image import load_image
from paligemma.tasks.own.columns import texts_of, wanted_columns
from paligemma.tasks.own.found import SPLITS, Found, OwnForm, split_names
from paligemma.tasks.own.json_lines import row_example
from paligemma.tasks.own.labels import OwnRow, RowError, UprightPicture
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.files import relative_name
from paligemma.tasks.reading.parquet import ParquetPicture, open_parquet

NAME = "parquet"
LOOKS_FOR = "train.parquet, train-*.parquet or train/*.parquet, also in data/ and default/"
_BATCH_ROWS = 64


class UprightParquetPicture(ParquetPicture):
    """The same, turned as its EXIF says: the way its labeller saw it."""

    def read(self, max_pixels: int) -> np.ndarray:
        """Decode to uint8[H, W, 3]; raise ImageError where that fails."""
        return load_image(self.encoded(), max_pixels=max_pixels)


def find(data: Path, split: str, form: OwnForm) -> Found | None:
    """Find the files of a split; a file, or all files of a folder without splits, are `train`."""
    if data.is_file():
        paths = [data] if data.suffix == ".parquet" else []
    else:
        paths = _named(data, *split_names(split))
        if not paths and split == "train" and not _named(data, *split_names(*SPLITS)):
            paths = sorted([*data.glob("*.parquet"), *data.glob("data/*.parquet")])
    if not paths:
        return None
    return Found(format=NAME, path=paths[0], rows=partial(_rows, paths, form))


def _named(data: Path, *names: str) -> list[Path]:
    places = ("{}.parquet", "{}-*.parquet", "{}/*.parquet")
    patterns = [folder + place for folder in ("", "data/", "default/") for place in places]
    return sorted({path for p in patterns for name in names for path in data.glob(p.format(name))})


def _rows(paths: list[Path], form: OwnForm) -> Iterator[OwnRow]:
    for path in paths:
        file = open_parquet(path)
        names = set(file.schema_arrow.names)
        try:
            if "image" not in names:
                raise DataError(
                    f"one column must be image, there are {', '.join(sorted(names))[:200]}"
                )
            wanted = ["image", *wanted_columns(names, form)]
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        number = 0
        for group in range(file.num_row_groups):
            place = 0
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    row = FileRow(record, f"{path}, row {number}", number)
                    picture = UprightParquetPicture(path=path, row_group=group, row=place)
                    place += 1
                    try:
                        yield _example(row, path, picture, form)
                    except RowError as error:
                        yield error
                    except (DataError, PromptError) as error:
                        said = str(error)
                        yield RowError("row", said if row.where in said else f"{row.where}: {said}")


def _example(row: FileRow, path: Path, picture: Picture, form: OwnForm) -> OwnRow:
    prefix, texts = texts_of(row, form)
    named: Any = row.fields["image"]
    if isinstance(named, Mapping) and not named.get("bytes"):
        named = named.get("path")
    if isinstance(named, str):
        inside = relative_name(named, f"{row.where}, image")
        picture = UprightPicture(path=path.parent / inside, folder=path.parent)
    return row_example(row, f"{path.stem}/{row.number}", (picture,), prefix, *texts)
