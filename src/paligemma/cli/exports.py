"""Files of other tools that a command fills while it goes through pictures, and goes on with."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from paligemma.cli.options import NamedPath, gathered_options
from paligemma.errors import ConfigError, DataError
from paligemma.whole_file import require_writable, write_whole

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections

STANDARD_OUTPUT = Path("-")
LABELS_FOLDER, DATA_YAML = "labels", "data.yaml"
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


def relative_names(images: Sequence[str], roots: Sequence[str]) -> list[str]:
    """What exports call the pictures: their paths below the folder that holds them all.

    Args:
        roots: folders that were named, and those of files that were.
    """
    try:
        root = os.path.commonpath([os.path.abspath(one) for one in roots])
        return [Path(os.path.relpath(image, root)).as_posix() for image in images]
    except ValueError:  # on several drives
        return list(images)


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
        self._asked = json.loads(json.dumps(asked, default=str))
        self._at: dict[str, tuple[int, object]] = {}  # line and stamp of each picture's answer
        self._num_lines = 0
        self.num_failed = 0
        kept = choice.coco or (choice.yolo and choice.yolo / "boxes") or choice.csv
        self._part = None
        if kept not in (None, STANDARD_OUTPUT):
            self._part = kept.with_name(kept.name + ".part")
        if choice.yolo is not None:
            _require_distinct(names.values())
            require_writable(choice.yolo / LABELS_FOLDER)
        if self._part is None or not self._goes_on(self._part, overwrite=overwrite):
            for path in choice.files:
                if os.path.lexists(path) and not overwrite:
                    raise ConfigError(
                        f"a file that is there is kept, got {path}; name another, or allow it "
                        "with --overwrite"
                    )
                require_writable(path.parent)

    def _goes_on(self, part: Path, *, overwrite: bool) -> bool:
        """Whether an earlier run of the same command left answers; reads where they are."""
        if not part.exists():
            return False
        rows = self._rows()
        heading = next(rows, None)
        if heading is None:  # killed before its first line was there
            part.unlink()
            return False
        if heading.get("asked") != self._asked:
            if overwrite:
                part.unlink()
                return False
            raise ConfigError(
                f"{part} keeps the answers of another command that was stopped; repeat that one, "
                "remove the file, or allow it with --overwrite"
            )
        for number, row in enumerate(rows, start=1):
            self._num_lines = number
            self._at[row["image"]] = number, row["stamp"]
            found = row["detections"]
            self._count(one["label"] for one in found if one.get("valid", True))
        return True

    def has(self, image: str) -> bool:
        """Whether the picture was answered before, and its file is the same."""
        return image in self._at and self._at[image][1] == _stamp(image)

    def add(self, image: str, found: Detections) -> None:
        """Keep the answer about one picture."""
        from paligemma.outputs.words import detections_json

        row = {"image": image, "stamp": _stamp(image), "size_wh": list(found.image_wh)}
        row |= detections_json(found.items, text=found.text, rest=found.rest, exact=True)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._num_lines += 1
        self._at[image] = self._num_lines, row["stamp"]
        self._count(item.name for item in found if item.is_valid)
        self._write_now(image, found)

    def _count(self, labels: Iterable[str | None]) -> None:
        from paligemma.outputs.types import NO_LABEL

        for label in labels:
            if (label or NO_LABEL) not in self._classes:
                self._classes.append(label or NO_LABEL)

    def _write_now(self, image: str, found: Detections) -> None:
        """What is written as the answers come."""
        name = self._names[image]
        if self._choice.yolo is not None:
            path = self._choice.yolo / LABELS_FOLDER / Path(name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            outlined = any(item.region is not None for item in found)
            lines = found.to_yolo(class_names=self._classes, polygons=outlined)
            write_whole(path, [lines])
        if self._choice.csv is not None:
            text = _csv_lines(name, found)
            if self._csv is None:
                click.echo(text, nl=False)
            else:
                self._csv.write(text)
                self._csv.flush()

    def __enter__(self) -> Exports:
        from paligemma.jobs.run_folder import cut_torn_line

        self._file: TextIO | None = None
        self._csv: TextIO | None = None
        if self._part is not None:
            is_new = not self._part.exists()
            if not is_new:
                with open(self._part, "r+b") as file:
                    cut_torn_line(file)
            self._file = open(self._part, "a", encoding="utf-8")
            if is_new:
                self._file.write(json.dumps({"asked": self._asked}) + "\n")
        heading = ",".join(_COLUMNS) + "\n"
        if self._choice.csv == STANDARD_OUTPUT:
            click.echo(heading, nl=False)
        elif self._choice.csv is not None:
            self._csv = open(self._choice.csv, "w", encoding="utf-8", newline="")
            self._csv.write(heading)
            self._csv.writelines(_csv_lines(*one) for one in self._found())
        return self

    def __exit__(self, *raised: object) -> None:
        for file in (self._file, self._csv):
            if file is not None:
                file.close()
        num_done = sum(image in self._at for image in self._names)
        if raised[0] is not None and not num_done:
            if self._part is not None:
                self._part.unlink(missing_ok=True)
            return
        names = {name: number for number, name in enumerate(self._classes, start=1)}
        if self._choice.coco is not None:
            from paligemma.outputs.detections import save_coco

            save_coco(self._choice.coco, self._found(), category_ids=names)
        if self._choice.yolo is not None:
            lines = (f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(names))
            write_whole(self._choice.yolo / DATA_YAML, ["names:\n", *lines])
        if self._part is not None and num_done == len(self._names):
            self._part.unlink(missing_ok=True)
        places = [self._choice.coco, self._choice.yolo, self._choice.csv]
        for place in places:
            if place not in (None, STANDARD_OUTPUT):
                click.echo(
                    f"paligemma: wrote {click.format_filename(place)}: {num_done} of "
                    f"{len(self._names)} pictures",
                    err=True,
                )

    def _found(self) -> Iterator[tuple[str, Detections]]:
        """Name and objects of every picture that was answered, in order, one at a time."""
        from paligemma.outputs.detections import Detections
        from paligemma.outputs.words import detection_from_json

        for number, row in enumerate(self._rows()):
            image = row.get("image", "")  # none in the heading
            if image not in self._names or self._at[image][0] != number:
                continue
            width, height = row["size_wh"]
            items = tuple(detection_from_json(one, (width, height)) for one in row["detections"])
            yield self._names[image], Detections(items=items, image_wh=(width, height))

    def _rows(self) -> Iterator[dict[str, Any]]:
        from paligemma.jobs.json_lines import read_rows

        assert self._part is not None
        for number, row in read_rows(self._part, drop_torn=True):
            if number > 1 and not {"image", "stamp", "size_wh", "detections"} <= set(row):
                raise DataError(f"{self._part}, line {number} is damaged; remove the file")
            yield row


def _stamp(image: str) -> list[int] | None:
    """What differs once a file is changed."""
    try:
        found = os.stat(image)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


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
