"""Files of other tools that a command fills while it goes through pictures, and goes on with."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from paligemma.cli.kept_answers import KeptAnswers
from paligemma.cli.options import NamedPath, gathered_options
from paligemma.errors import ConfigError, DataError
from paligemma.one_writer import one_writer
from paligemma.whole_file import require_writable, write_whole

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections

STANDARD_OUTPUT = Path("-")
LABELS_FOLDER, DATA_YAML = "labels", "data.yaml"
_ADDRESS = re.compile(r"(https?|data|file):", re.IGNORECASE)
_MAX_NAME = 1_000
_NO_FOLDERS = (os.curdir, os.pardir, os.sep)
_COLUMNS = ("image", "width", "height", "label", "score", "left", "top", "right", "bottom")


@dataclass(frozen=True, kw_only=True)
class ExportChoice:
    """Which files are written of all pictures."""

    coco: Path | None
    yolo: Path | None
    csv: Path | None

    @property
    def files(self) -> list[Path]:
        """The files that replace others of their names."""
        named = [self.coco, self.csv, self.yolo and self.yolo / DATA_YAML]
        return [path for path in named if path is not None and path != STANDARD_OUTPUT]

    @property
    def part(self) -> Path | None:
        """The file that keeps the answers until all are there; None on standard output alone."""
        kept = self.coco or (self.yolo and self.yolo / "boxes") or self.csv
        if kept is None or kept == STANDARD_OUTPUT:
            return None
        return kept.with_name(f"{kept.name}.part")

    @property
    def any(self) -> bool:
        return self != ExportChoice(coco=None, yolo=None, csv=None)


export_options = gathered_options(
    "exports",
    [
        click.option(
            "--coco",
            type=NamedPath(dir_okay=False),
            metavar="FILE",
            help="Write all objects found as one COCO file, with masks as run lengths.",
        ),
        click.option(
            "--yolo",
            type=NamedPath(file_okay=False),
            metavar="DIR",
            help="Write a YOLO label file for each picture, and data.yaml with the names.",
        ),
        click.option(
            "--csv",
            is_flag=False,
            flag_value="-",
            type=NamedPath(dir_okay=False),
            metavar="[FILE]",
            help="Write a line for each object; on standard output where no file follows.",
        ),
    ],
    lambda values: ExportChoice(**values),
)


def export_names(images: Sequence[str], roots: Sequence[str]) -> dict[str, str]:
    """What exports call the pictures: their paths below the folder that holds them all.

    One that is named twice, in whatever way, is there once.

    Args:
        roots: folders that were named, and those of files that were.

    Returns:
        Picture -> its name: for one from elsewhere its address, or a number where that is long or
        the picture itself.
    """
    seen: set[str] = set()
    names = {}
    for number, image in enumerate(images, start=1):
        is_file = os.path.lexists(image) or not _ADDRESS.match(image)
        place = os.path.abspath(image) if is_file else image
        if place not in seen:
            names[image] = _name_below(place, roots) if is_file else image
            if image[:5].lower() == "data:" or len(names[image]) > _MAX_NAME:
                names[image] = f"picture-{number}"
        seen.add(place)
    return names


def _name_below(path: str, roots: Sequence[str]) -> str:
    try:
        root = os.path.commonpath([os.path.abspath(one) for one in roots])
        below = Path(os.path.relpath(path, root))
    except ValueError:  # on several drives
        return path
    return below.name if os.pardir in below.parts else below.as_posix()


def only_writer(choice: ExportChoice) -> AbstractContextManager[None]:
    """Keep other processes from the same files, until the block ends.

    Raises:
        ConfigError: another one writes them, or their folder takes no files.
    """
    part = choice.part
    return nullcontext() if part is None else one_writer(part.parent, part.name)


class Exports:
    """What was found, kept picture by picture beside the files that are written of it.

    Every answer is on the disk before the next picture is asked, in FILE.part, so the same command
    goes on where one was stopped or killed. The files are written when the block ends, however it
    does; label files and lines of CSV as the answers come.

    Args:
        choice: which files.
        asked: everything that changes an answer; another command does not go on with these.
        labels: that were asked for, which are the first class numbers.
        names: picture -> what exports call it.
        overwrite: the user's leave to replace files, and to drop what another command began.

    Raises:
        ConfigError: a file is there that the program did not write, or cannot be written.
        DataError: what is to be gone on with is damaged.
    """

    def __init__(
        self,
        choice: ExportChoice,
        *,
        asked: Mapping[str, Any],
        labels: Sequence[str],
        names: Mapping[str, str],
        overwrite: bool,
    ) -> None:
        self._choice, self._names, self._classes = choice, names, list(dict.fromkeys(labels))
        self._num_empty: dict[str, int] = {}
        if len({os.path.realpath(path) for path in choice.files}) < len(choice.files):
            raise ConfigError(
                "each of --coco, --csv and --yolo writes files of its own, got one name twice: "
                f"{', '.join(map(str, choice.files))}; name another"
            )
        self._csv: TextIO | None = None
        if choice.yolo is not None:
            _require_distinct(names.values())
            require_writable(choice.yolo / LABELS_FOLDER)
        self._kept = KeptAnswers(choice.part, asked, overwrite=overwrite)
        if self._kept.is_begun:
            for image, found in self._kept.found():
                self._count(image, found)
            return
        labelled = map(self._label_path, names) if choice.yolo is not None else ()
        for path in (*choice.files, *labelled):
            if os.path.lexists(path) and not overwrite:
                raise ConfigError(
                    f"a file that is there is kept, got {path}; name another, or allow it "
                    "with --overwrite"
                )
        for path in choice.files:
            require_writable(path.parent)

    def has(self, image: str) -> bool:
        """Whether the picture was answered before, and its file is the same."""
        return self._kept.has(image)

    def add(self, image: str, found: Detections) -> None:
        """Write the answer about one picture, and keep it."""
        self._count(image, found)
        self._write_now(image, found)
        self._kept.add(image, found)

    def _count(self, image: str, found: Detections) -> None:
        self._num_empty[image] = sum(not item.is_valid for item in found)
        for item in _valid(found):
            if item.name not in self._classes:
                self._classes.append(item.name)

    def _label_path(self, image: str) -> Path:
        assert self._choice.yolo is not None
        parts = [part for part in Path(self._names[image]).parts if part not in _NO_FOLDERS]
        return self._choice.yolo / LABELS_FOLDER / Path(*parts).with_suffix(".txt")

    def _write_now(self, image: str, found: Detections) -> None:
        """What is written as the answers come."""
        if self._choice.yolo is not None:
            path, valid = self._label_path(image), _valid(found)
            require_writable(path.parent)
            outlined = any(item.region is not None for item in valid)
            write_whole(path, [valid.to_yolo(class_names=self._classes, polygons=outlined)])
        if self._choice.csv is not None:
            text = _csv_lines(self._names[image], found)
            if self._csv is None:
                click.echo(text, nl=False)
            else:
                self._csv.write(text)
                self._csv.flush()

    def __enter__(self) -> Exports:
        self._kept.open()
        heading = ",".join(_COLUMNS) + "\n"
        if self._choice.csv == STANDARD_OUTPUT:
            click.echo(heading, nl=False)
        elif self._choice.csv is not None:
            # A name of the file system that is no UTF-8 is written as JSON has it.
            self._csv = open(
                self._choice.csv, "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
            self._csv.write(heading)
            self._csv.writelines(_csv_lines(*one) for one in self._found())
        return self

    def __exit__(self, *raised: object) -> None:
        self._kept.close()
        if self._csv is not None:
            self._csv.close()
        num_done = sum(image in self._kept for image in self._names)
        if raised[0] is not None and not num_done:
            self._kept.remove()
            return
        names = {name: number for number, name in enumerate(self._classes, start=1)}
        if self._choice.coco is not None:
            from paligemma.outputs.detections import save_coco

            valid = ((name, _valid(found)) for name, found in self._found())
            save_coco(self._choice.coco, valid, category_ids=names)
        if self._choice.yolo is not None:
            from paligemma.outputs.export import yolo_names

            write_whole(self._choice.yolo / DATA_YAML, [yolo_names(list(names))])
        if num_done == len(self._names):
            self._kept.remove()
        self._say_what_is_written(num_done)

    def _say_what_is_written(self, num_done: int) -> None:
        num_empty = sum(self._num_empty[image] for image in self._names if image in self._kept)
        if num_empty and (self._choice.coco, self._choice.yolo) != (None, None):
            click.echo(
                f"paligemma: {num_empty:,} boxes have no height or width and are left out of COCO "
                "and YOLO files",
                err=True,
            )
        for place in (self._choice.coco, self._choice.yolo, self._choice.csv):
            if place not in (None, STANDARD_OUTPUT):
                click.echo(
                    f"paligemma: wrote {click.format_filename(place)}: {num_done} of "
                    f"{len(self._names)} pictures",
                    err=True,
                )

    def _found(self) -> Iterator[tuple[str, Detections]]:
        """Name and objects of every picture that was answered, in order, one at a time."""
        for image, found in self._kept.found():
            if image in self._names:
                yield self._names[image], found


def _valid(found: Detections) -> Detections:
    """Without boxes that have no height or width, which some formats cannot hold."""
    return replace(found, items=tuple(item for item in found if item.is_valid))


def _csv_lines(name: str, found: Detections) -> str:
    """A line for each object; coordinates in pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for item in found:
        score = "" if item.score is None else f"{item.score:.6f}"
        box = [f"{value:.2f}" for value in item.box_xyxy_px]
        writer.writerow([name, *found.image_wh, item.name, score, *box])
    return text.getvalue()


def _require_distinct(names: Iterable[str]) -> None:
    counts = Counter(os.path.splitext(name)[0] for name in names)
    doubled = sorted(stem for stem, count in counts.items() if count > 1)
    if doubled:
        raise DataError(
            f"label files are named after their pictures, but {', '.join(doubled[:5])} would be "
            "written twice; ask these pictures apart"
        )
