"""Reads sets of the ViDoRe benchmark from parquet: pages, queries, and which page answers which.

BEIR's form has the tables `corpus`, `queries` and `qrels`; the older form has one table whose rows
are a query and its page. Source: huggingface.co/vidore; mteb's loader of image retrieval.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.tasks.reading.parquet import ParquetPicture, open_parquet, parquet_rows

TABLES = ("corpus", "queries", "qrels")
# A column has either spelling, by the version of the benchmark.
_PAGE_ID, _QUERY_ID = ("corpus-id", "corpus_id"), ("query-id", "query_id")
_MAX_ROWS, _MAX_FILES, _MAX_QUERY_CHARS = 2_000_000, 10_000, 10_000


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """One set of the benchmark.

    Attributes:
        name: name of its folder.
        page_ids: ids of the pages, each once.
        pictures: the pictures of these pages.
        queries: id -> text; those without words are left out.
        relevance: id of a query -> id of a page -> grade, 0 or more; also of pages that the corpus
            lacks, which nobody can find.
        notes: what was left out, in sentences.
    """

    name: str
    page_ids: tuple[str, ...]
    pictures: tuple[ParquetPicture, ...]
    queries: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()


def read_sets(folder: Path, *, split: str = "test") -> list[RetrievalSet]:
    """Read one set, or every set in the folders of one folder, by name.

    Args:
        folder: a copy of a repository of the hub, or a folder of such copies.
        split: of sets that have several.

    Raises:
        DataError: there is none, or one is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    if not folder.is_dir():
        raise DataError(f"a ViDoRe set is a folder of parquet files, {str(folder)!r:.200} is none")
    files = sorted(folder.rglob("*.parquet"))[: _MAX_FILES + 1]
    if len(files) > _MAX_FILES:
        raise DataError(f"{folder} holds more than {_MAX_FILES} parquet files; name fewer sets")
    own = [path for path in files if _is_own(path.relative_to(folder))]
    if own:
        return [_read_set(folder, own, split)]
    names = sorted({path.relative_to(folder).parts[0] for path in files})
    sets = []
    for name in names:
        mine = [path for path in files if path.relative_to(folder).parts[0] == name]
        sets.append(_read_set(folder / name, mine, split))
    if not sets:
        raise DataError(
            f"{folder} holds no parquet file; download a set, such as `hf download "
            "vidore/docvqa_test_subsampled_beir --repo-type dataset`"
        )
    return sets


def _is_own(path: Path) -> bool:
    """Whether a file belongs to a set that lies in the folder itself, not in one of its folders."""
    return len(path.parts) == 1 or path.parts[0] in (*TABLES, "data")


def _read_set(folder: Path, files: Sequence[Path], split: str) -> RetrievalSet:
    tables: dict[str, list[Path]] = {name: [] for name in TABLES}
    for path in files:
        name = _table_of(path.relative_to(folder))
        if name is not None:
            tables[name].append(path)
    if not any(tables.values()):
        return _from_rows(folder, _of_split(files, split))
    if missing := [name for name in TABLES if not tables[name]]:
        raise DataError(
            f"a ViDoRe set has the tables {', '.join(TABLES)}, {folder} lacks "
            f"{' and '.join(missing)}; download it again"
        )
    return _from_beir(folder, {name: _of_split(some, split) for name, some in tables.items()})


def _table_of(path: Path) -> str | None:
    found = [name for name in TABLES if name in path.parts[:-1] or path.stem.startswith(name)]
    return found[0] if found else None


def _of_split(files: Sequence[Path], split: str) -> list[Path]:
    """The files of a split, where their names state splits."""
    named = [path for path in files if re.match(rf"{re.escape(split)}(?:$|[-.])", path.stem)]
    return named or list(files)


def _from_beir(folder: Path, tables: Mapping[str, Sequence[Path]]) -> RetrievalSet:
    pages: dict[str, ParquetPicture] = {}
    twice = 0
    for page, picture in _pictures(tables["corpus"], _PAGE_ID):
        twice += page in pages
        pages.setdefault(page, picture)
    texts: dict[str, str] = {}
    empty = 0
    for row in _rows(tables["queries"], (_QUERY_ID, ("query", "text"))):
        key, text = _id(row[0]), row[1]
        if text is not None and str(text).strip():
            texts.setdefault(key, str(text)[:_MAX_QUERY_CHARS])
        else:
            empty += 1
    relevance: dict[str, dict[str, int]] = {}
    for query, page, grade in _rows(tables["qrels"], (_QUERY_ID, _PAGE_ID, ("score",))):
        # NaN % 1 and infinity % 1 are NaN, which counts as a remainder.
        if isinstance(grade, bool) or not isinstance(grade, int | float) or grade % 1:
            raise DataError(f"{folder}: a grade of qrels is a whole number, got {grade!r:.80}")
        relevance.setdefault(_id(query), {})[_id(page)] = max(0, int(grade))
    return _checked(folder, pages, texts, relevance, twice=twice, empty=empty)


def _from_rows(folder: Path, files: Sequence[Path]) -> RetrievalSet:
    """A table whose rows are a query and its page; pages and queries that repeat are one."""
    pages: dict[str, ParquetPicture] = {}
    texts: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = {}
    twice = empty = 0
    rows = _rows(files, (("query",),))
    for (page, picture), (text,) in zip(_pictures(files, ("image_filename",)), rows, strict=True):
        twice += page in pages
        pages.setdefault(page, picture)
        if text is None or not str(text).strip():
            empty += 1
            continue
        query = str(text)[:_MAX_QUERY_CHARS]
        texts.setdefault(query, query)
        relevance.setdefault(query, {})[page] = 1
    return _checked(folder, pages, texts, relevance, twice=twice, empty=empty)


def _checked(
    folder: Path,
    pages: Mapping[str, ParquetPicture],
    texts: Mapping[str, str],
    relevance: Mapping[str, Mapping[str, int]],
    *,
    twice: int,
    empty: int,
) -> RetrievalSet:
    judged = {key: text for key, text in texts.items() if key in relevance}
    if not pages or not judged:
        raise DataError(
            f"a ViDoRe set needs pages and queries with an answer, {folder} has {len(pages)} and "
            f"{len(judged)}; download it again"
        )
    lost = {page for found in relevance.values() for page in found if page not in pages}
    counted = (
        (twice, "pages that are there twice, counted once"),
        (empty, "queries without words, left out"),
        (len(texts) - len(judged), "queries without a judged page, left out"),
        (len(lost), "judged pages that the corpus lacks, counted as not found"),
    )
    return RetrievalSet(
        name=folder.name,
        page_ids=tuple(pages),
        pictures=tuple(pages.values()),
        queries=judged,
        relevance=relevance,
        notes=tuple(f"{words}: {number:,}" for number, words in counted if number),
    )


def _pictures(files: Sequence[Path], ids: tuple[str, ...]) -> Iterator[tuple[str, ParquetPicture]]:
    for path in files:
        (name, image) = _columns(path, (ids, ("image",)))
        for group, place, row in parquet_rows(path, [name]):
            yield (
                _id(row[name]),
                ParquetPicture(path=path, row_group=group, row=place, column=image),
            )


def _rows(files: Sequence[Path], columns: tuple[tuple[str, ...], ...]) -> Iterator[tuple[Any, ...]]:
    number = 0
    for path in files:
        names = _columns(path, columns)
        for _, _, row in parquet_rows(path, names):
            number += 1
            if number > _MAX_ROWS:
                raise DataError(f"{path}: a table may have {_MAX_ROWS:,} rows, this one has more")
            yield tuple(row[name] for name in names)


def _columns(path: Path, wanted: tuple[tuple[str, ...], ...]) -> list[str]:
    """The column of a file for each of some choices of names."""
    there = set(open_parquet(path).schema_arrow.names)
    found = []
    for names in wanted:
        name = next((one for one in names if one in there), None)
        if name is None:
            raise DataError(
                f"{path} must have a column {' or '.join(names)}, got "
                f"{', '.join(sorted(there))[:300]}; download it again"
            )
        found.append(name)
    return found


def _id(value: Any) -> str:
    if value is None or isinstance(value, float | dict | list):
        raise DataError(f"an id is a number or a text, got {value!r:.80}; download the set again")
    return str(value)
