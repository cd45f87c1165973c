"""What a user names as input, by its form: a folder, a pattern, files of rows, a set of the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from paligemma.errors import DataError, ImageError
from paligemma.jobs.labelling.inputs import Input, JsonLines, TarShards, listing_lines
from paligemma.jobs.labelling.parquet_input import Parquet
from paligemma.processing.folders import files_of, is_picture_name
from paligemma.tasks.own.found import split_names
from paligemma.tasks.own.hub_set import is_hub_set, local_folder
from paligemma.whole_file import write_whole

_ROWS = (".jsonl", ".parquet", ".tar")
# What a labelling writes into its folder, which may lie in that of the input.
_OWN = re.compile(
    r"(labels-\d{8,12}|quarantine/part-\d{8,12}|parts|log|begun|pictures)\.(jsonl|parquet)"
)


def open_input(
    named: str | os.PathLike[str],
    listing: Path,
    *,
    pictures: Path | None = None,
    column: str = "image",
    columns: Sequence[str] = (),
    split: str | None = None,
) -> Input:
    """Find the rows that are named; no picture is opened.

    Args:
        named: folder of pictures, or of parquet or tar files; a pattern of file names; a .jsonl,
            .parquet or .tar file; or `hub:owner/name`.
        listing: file to which the names of found pictures are written once, and from which they
            are read then, so that a picture which appears later moves no row.
        pictures: folder below which named pictures lie; that of their file by default.
        column: field or column of the picture.
        columns: further columns that are needed.
        split: of a data set, such as train; all its files by default.

    Raises:
        DataError: there is nothing of the name, or of several kinds, or an option has no effect on
            what is there.
        PaliGemmaError: the hub refuses or cannot be reached.
    """
    place = os.fspath(named)
    if is_hub_set(place):
        _require_none(place, "--pictures", pictures)
        folder = local_folder(Path(place))
        paths = _of_split(folder, _files_below(folder, ".parquet", listing.parent), split)
        return Parquet(paths=paths, column=column, columns=tuple(columns))
    # Pictures that were listed stay the input, whatever files of rows were written beside them.
    paths = () if listing.exists() else _row_files(place, split, listing.parent)
    kind = _suffix(paths[0]) if paths else ""
    if kind == ".jsonl":
        _require_none(place, "--split", split)
        return JsonLines(paths=paths, folder=pictures, column=column)
    if kind == ".parquet":
        return Parquet(paths=paths, folder=pictures, column=column, columns=tuple(columns))
    _require_none(place, "--pictures", pictures)
    if kind == ".tar":
        return TarShards(paths=paths)
    _require_none(place, "--split", split)
    return _listed(place, listing)


_TAKEN = {
    "--split": "a folder of .parquet or .tar files, or of hub:owner/name",
    "--pictures": ".jsonl and .parquet files that name their pictures",
}


def _require_none(place: str, option: str, value: object) -> None:
    if value is not None:
        raise DataError(
            f"{option} is of {_TAKEN[option]}, and {place[:200]} is no such input; leave it out"
        )


def _row_files(place: str, split: str | None, own: Path) -> tuple[Path, ...]:
    """Files of rows, all of one kind, without those that a labelling in the folder `own` wrote;
    none where pictures are named."""
    if os.path.isfile(place):
        if _suffix(place) not in _ROWS and not is_picture_name(place):
            raise DataError(
                f"an input is pictures or {', '.join(_ROWS)} files, {place[:200]} ends in "
                f"{_suffix(place)[:20]!r}; unpack or convert it"
            )
        return (Path(place),) if _suffix(place) in _ROWS else ()
    if os.path.isdir(place):
        folder = Path(place)
        of_kind = {one: _files_below(folder, one, own) for one in (".parquet", ".tar")}
        suffixes = [one for one, paths in of_kind.items() if paths]
        if not suffixes:
            return ()
        _require_one_kind(place, [*suffixes, *_pictures_of(place)])
        return _of_split(folder, of_kind[suffixes[0]], split, suffixes[0])
    matching = sorted(glob.glob(place, recursive=True))
    named = [one for one in matching if os.path.isfile(one) and not _is_own(one, own)]
    found = tuple(Path(one) for one in named if _suffix(one) in _ROWS)
    if found:
        _require_none(place, "--split", split)
        pictures = [one for one in named if is_picture_name(one)]
        _require_one_kind(place, [*dict.fromkeys(map(_suffix, found)), *pictures[:1]])
    return found


def _suffix(path: str | Path) -> str:
    return Path(path).suffix.lower()


def _require_one_kind(place: str, kinds: Sequence[str]) -> None:
    if len(kinds) > 1:
        raise DataError(
            f"an input is of one kind, {place[:200]} has {', '.join(kinds)[:300]}; name one kind "
            "by a pattern that ends in its suffix, such as DIR/**/*.jpg"
        )


def _pictures_of(place: str) -> list[str]:
    """The first picture of a folder."""
    try:
        return (files_of(place) or [])[:1]
    except ImageError:
        return []


def _files_below(folder: Path, suffix: str, own: Path) -> list[Path]:
    """The files of a folder by their suffix, without hidden ones and those of the labelling."""
    return sorted(
        path
        for path in folder.rglob(f"*{suffix}")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not _is_own(path, own)
    )


def _is_own(path: str | Path, own: Path) -> bool:
    return _OWN.fullmatch(os.path.relpath(path, own)) is not None


def _of_split(
    folder: Path, paths: Sequence[Path], split: str | None, suffix: str = ".parquet"
) -> tuple[Path, ...]:
    if split is None:
        return tuple(paths)
    names = (split, *split_names(split)) if split in ("train", "valid", "test") else (split,)

    def is_of_it(path: Path) -> bool:
        first = path.relative_to(folder).parts
        return any(
            part in names
            or part.startswith(tuple(f"{name}{mark}" for name in names for mark in "-_."))
            for part in first
        )

    found = tuple(path for path in paths if is_of_it(path))
    if not found:
        raise DataError(
            f"{folder} has no files of the split {split!r:.80}; they are named {split}-*{suffix} "
            f"or lie in a folder {split}, and it holds such as "
            f"{', '.join(path.name for path in paths[:3])}"
        )
    return found


def _listed(place: str, listing: Path) -> JsonLines:
    """The pictures of a folder or a pattern, or one picture, by way of their listing."""
    root = Path(place)
    if not root.exists():
        parts = root.parts
        magic = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        root = Path(*parts[:magic])
    elif root.is_file():
        root = root.parent
    if not listing.exists():
        try:
            found = [place] if os.path.isfile(place) else files_of(place)
        except ImageError as error:
            raise DataError(str(error)) from error
        if found is None:
            raise DataError(
                "an input is a folder or a pattern of pictures, a .jsonl, .parquet or .tar file, "
                f"or hub:owner/name, there is no {place[:200]}; check the path"
            )
        write_whole(listing, listing_lines([os.path.relpath(one, root) for one in found]))
    known = (os.path.abspath(place),)
    return JsonLines(paths=(listing,), folder=root, known=known, is_listing=True)
