"""Pairs of a query and the page that answers it: read from files, and shown in batches.

    {"query": "how much did revenue grow?", "image": "pages/12.png", "negatives": ["pages/40.png"]}

Parquet with the columns `query` and `image` is read too, as vidore/colpali_train_set has them.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from paligemma.errors import DataError, ImageError
from paligemma.example import Picture
from paligemma.processing.processor import Processor
from paligemma.retrieval.inputs import page_batch, query_batch
from paligemma.retrieval.objective import PairBatch
from paligemma.retrieval.presets import Preset
from paligemma.tasks.reading.file_rows import FileRow, require_object
from paligemma.tasks.reading.files import parse_json, read_lines
from paligemma.tasks.reading.finding import plain_name
from paligemma.tasks.reading.parquet import ParquetPicture, open_parquet, parquet_rows
from paligemma.tasks.reading.pictures import FilePicture
from paligemma.train.mixture import MixedOrder

logger = logging.getLogger(__name__)

TRAIN_NAMES, VALID_NAMES = ("train",), ("valid", "val", "validation", "dev", "test")
_MAX_QUERY_CHARS, _MAX_NEGATIVES, _MAX_PAIRS = 10_000, 64, 10_000_000
# Held out where no file holds rows to measure with.
_HELD_OUT_SHARE, _MAX_HELD_OUT = 0.1, 200
_ORDER, _NEGATIVES = 0, 1


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page, known by a key: two pairs with the same key show the same page."""

    key: str
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A query with the page that answers it.

    Attributes:
        id: names the row, for people.
        negatives: pages that look right and are not.
    """

    id: str
    query: str
    page: Page
    negatives: tuple[Page, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """What was read.

    Attributes:
        learnt: pairs to learn from, of at least two pages.
        held_out: pairs to measure with; may be none.
        skipped: a sentence for each bad row.
    """

    learnt: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    skipped: tuple[str, ...]


def read_pairs(data: Path) -> PairRows:
    """Read a file of pairs, or a folder of train and valid; a bad row is named and skipped.

    Without rows to measure with, a tenth of the pages is held out with their queries, at most 200.

    Raises:
        DataError: there is no such file, or fewer than two pages to tell apart.
        MissingExtraError: parquet without pyarrow.
    """
    skipped: list[str] = []
    learnt = _read(_files(data, TRAIN_NAMES), skipped)
    held_out = _read(_files(data, VALID_NAMES), skipped) if data.is_dir() else []
    if not held_out:
        learnt, held_out = _held_out(learnt)
    if len({pair.page.key for pair in learnt}) < 2:
        raise DataError(
            f"a retriever learns to tell pages apart, {data} has pairs of "
            f"{len({pair.page.key for pair in learnt})} pages"
            + (f"; the first bad row: {skipped[0]}" if skipped else "; add more")
        )
    return PairRows(learnt=tuple(learnt), held_out=tuple(held_out), skipped=tuple(skipped))


def _files(data: Path, names: Sequence[str]) -> list[Path]:
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise DataError(f"pairs lie in a file or a folder, there is no {str(data)!r:.200}")
    found = [data / f"{name}.jsonl" for name in names if (data / f"{name}.jsonl").is_file()]
    if not found:
        every = [path for folder in (data, data / "data") for path in folder.glob("*.parquet")]
        found = sorted(path for path in every if path.name.startswith(tuple(names)))
    if not found and "train" in names:
        raise DataError(
            f"pairs lie in train.jsonl or in parquet files of that name, {data} has neither; "
            "name the file itself as data"
        )
    return found


def _read(files: Sequence[Path], skipped: list[str]) -> list[Pair]:
    pairs: list[Pair] = []
    for path in files:
        rows = _parquet_pairs(path) if path.suffix == ".parquet" else _json_pairs(path)
        for made in rows:
            try:
                pairs.append(made())
            except (DataError, ImageError) as error:
                skipped.append(str(error))
            if len(pairs) > _MAX_PAIRS:
                raise DataError(f"a training takes {_MAX_PAIRS:,} pairs, {path} holds more")
    return pairs


def _json_pairs(path: Path) -> Iterator[Callable[[], Pair]]:
    for number, line in read_lines(path):
        where = f"{path}, row {number}"

        def made(line: bytes = line, where: str = where, number: int = number) -> Pair:
            row = FileRow(require_object(parse_json(line, where), where), where, number)
            hard = row.texts("negatives") if "negatives" in row else []
            if len(hard) > _MAX_NEGATIVES:
                raise row.error(f"a query may have {_MAX_NEGATIVES} negatives, got {len(hard)}")
            page = _file_page(path, row.text("image"), where)
            negatives = tuple(_file_page(path, name, where) for name in hard)
            if page.key in {one.key for one in negatives}:
                raise row.error("a page cannot be right and a negative of the same query")
            query = _query(row.text("query"), where)
            return Pair(id=where, query=query, page=page, negatives=negatives)

        yield made


def _parquet_pairs(path: Path) -> Iterator[Callable[[], Pair]]:
    there = open_parquet(path).schema_arrow.names
    if not {"query", "image"} <= set(there):
        raise DataError(
            f"pairs in parquet have the columns query and image, {path} has "
            f"{', '.join(there)[:300]}"
        )
    columns = [name for name in ("query", "image_filename") if name in there]
    for number, (group, place, row) in enumerate(parquet_rows(path, columns), start=1):
        where = f"{path}, row {number}"

        def made(
            row: dict[str, object] = row, group: int = group, place: int = place, where: str = where
        ) -> Pair:
            name = row.get("image_filename")
            picture = ParquetPicture(path=path, row_group=group, row=place)
            page = Page(key=str(name) if name else where, picture=picture)
            return Pair(id=where, query=_query(row["query"], where), page=page)

        yield made


def _file_page(path: Path, name: str, where: str) -> Page:
    plain = plain_name(name)
    if plain is None:
        raise DataError(f"{where}: a page is named below the folder of its file, got {name!r:.200}")
    picture = FilePicture(path=path.parent / plain, folder=path.parent)
    try:
        picture.stored_size_hw()
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return Page(key=str(PurePosixPath(plain)), picture=picture)


def _query(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > _MAX_QUERY_CHARS:
        raise DataError(
            f"{where}: a query is a text of 1 to {_MAX_QUERY_CHARS:,} characters, got {text!r:.80}"
        )
    if any("\ud800" <= one <= "\udfff" for one in text):  # JSON may hold half of a pair
        raise DataError(f"{where}: a query is Unicode, got a lone surrogate in {text!r:.80}")
    return text


def _held_out(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Pages are held out with all of their queries, chosen by their keys alone."""
    keys = sorted({pair.page.key for pair in pairs}, key=lambda key: zlib.crc32(key.encode()))
    wanted = min(_MAX_HELD_OUT, round(_HELD_OUT_SHARE * len(keys)))
    if wanted < 2:  # one page alone is always found
        return list(pairs), []
    chosen = set(keys[:wanted])
    learnt = [
        pair
        for pair in pairs
        if pair.page.key not in chosen and not any(one.key in chosen for one in pair.negatives)
    ]
    return learnt, [pair for pair in pairs if pair.page.key in chosen]


@dataclass(frozen=True)
class PairSource:
    """Makes the batch of any step; an epoch shows every pair once, in an order of its own.

    A page that several queries of a batch ask for is shown once, so it is nobody's wrong page.

    Attributes:
        pairs: what is learnt.
        preset: what stands around queries and pages.
        processor: tokenizer and size of the pictures.
        batch_size: pairs an update.
        num_negatives: most hard negatives of a query that a visit draws.
        seed: of orders and of that draw.
    """

    pairs: Sequence[Pair]
    preset: Preset
    processor: Processor
    batch_size: int
    num_negatives: int
    seed: int

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0.

        Raises:
            DataError: a picture can no longer be read.
        """
        pairs = self._shown(step)
        pages = {pair.page.key: pair.page for pair in pairs}
        hard = [self._negatives(pair, step) for pair in pairs]
        pictures = [*pages.values(), *(page for some in hard for page in some)]
        place_of = {key: place for place, key in enumerate(pages)}
        return PairBatch(
            queries=query_batch(self.preset, self.processor, [pair.query for pair in pairs]),
            pages=page_batch(self.preset, self.processor, list(map(self._pixels, pictures))),
            page_of=tuple(place_of[pair.page.key] for pair in pairs),
            num_negatives=tuple(map(len, hard)) if any(hard) else (),
        )

    def _shown(self, step: int) -> list[Pair]:
        """The pairs of a step, each once; later ones follow where all of them share one page."""
        first = step * self.batch_size
        shown: dict[int, Pair] = {}
        for place in range(first, first + self.batch_size + 2 * len(self.pairs)):
            # A place in the next epoch may show a pair again, which would be its own wrong page.
            index = self._order.visit(place)[1]
            shown.setdefault(index, self.pairs[index])
            is_whole = place + 1 >= first + self.batch_size
            if is_whole and len({pair.page.key for pair in shown.values()}) > 1:
                break
        return list(shown.values())

    def ids(self, step: int) -> list[str]:
        """The ids of the rows of a step."""
        first = step * self.batch_size
        return [self.pairs[self._order.visit(first + k)[1]].id for k in range(self.batch_size)]

    def _negatives(self, pair: Pair, step: int) -> list[Page]:
        count = min(self.num_negatives, len(pair.negatives))
        if not count:
            return []
        rng = np.random.default_rng((self.seed, _NEGATIVES, step, zlib.crc32(pair.id.encode())))
        return [pair.negatives[k] for k in rng.permutation(len(pair.negatives))[:count]]

    def _pixels(self, page: Page) -> np.ndarray:
        try:
            return page.picture.read(self.processor.reader.max_pixels)
        except ImageError as error:
            raise DataError(f"{page.key}: {error}") from error

    @cached_property
    def _order(self) -> MixedOrder:
        return MixedOrder([len(self.pairs)], (1.0,), (self.seed, _ORDER))
