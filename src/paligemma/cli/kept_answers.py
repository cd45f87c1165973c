"""Answers about pictures that reach the disk one by one, so that the same command goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from paligemma.errors import ConfigError, DataError

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections


class KeptAnswers:
    """A file with what was asked on its first line, then an answer a line.

    Args:
        path: the file; None keeps nothing.
        asked: everything that changes an answer; another command does not go on with these.
        overwrite: the user's leave to drop what another command began.

    Attributes:
        path: the file.
        is_begun: whether an earlier run of the same command left answers.

    Raises:
        ConfigError: the file is of another command.
        DataError: it is damaged.
    """

    def __init__(self, path: Path | None, asked: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = path
        self._asked = json.loads(json.dumps(asked, default=str))
        self._at: dict[str, tuple[int, object]] = {}  # line and stamp of each picture's answer
        self._num_lines = 0
        self._file: TextIO | None = None
        self.is_begun = self._read_places(overwrite=overwrite)

    def _read_places(self, *, overwrite: bool) -> bool:
        from paligemma.jobs.json_lines import read_rows

        if self.path is None or not self.path.exists():
            return False
        rows = read_rows(self.path, drop_torn=True)
        heading = next(rows, None)
        if heading is None:  # killed before its first line was there
            self.path.unlink()
            return False
        if heading[1].get("asked") != self._asked:
            if overwrite:
                self.path.unlink()
                return False
            raise ConfigError(
                f"{self.path} keeps the answers of another command that was stopped; repeat that "
                "one, remove the file, or allow it with --overwrite"
            )
        for image, stamp, _ in self._answers():
            self._num_lines += 1
            self._at[image] = self._num_lines, stamp
        return True

    def has(self, image: str) -> bool:
        """Whether the picture was answered before, and its file is the same."""
        return image in self._at and self._at[image][1] == _stamp(image)

    def __contains__(self, image: str) -> bool:
        """Whether there is an answer about the picture, or what it was before."""
        return image in self._at

    def open(self) -> None:
        """Get ready to take answers, after the last complete one."""
        from paligemma.jobs.run_folder import cut_torn_line

        if self.path is None:
            return
        is_new = not self.path.exists()
        if not is_new:
            with open(self.path, "r+b") as file:
                cut_torn_line(file)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115, see `close`
        if is_new:
            self._file.write(json.dumps({"asked": self._asked}) + "\n")

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

    def found(self) -> Iterator[tuple[str, Detections]]:
        """Name and objects of every picture that was answered, its last answer, one at a time."""
        for number, (image, _, found) in enumerate(self._answers(), start=1):
            if self._at[image][0] == number:
                yield image, found

    def _answers(self) -> Iterator[tuple[str, object, Detections]]:
        """Picture, stamp and objects of every line.

        Raises:
            DataError: a line is no answer.
        """
        from paligemma.jobs.json_lines import read_rows
        from paligemma.outputs.detections import Detections
        from paligemma.outputs.words import detection_from_json

        if self.path is None:
            return
        for number, row in read_rows(self.path, drop_torn=True):
            if number == 1:
                continue
            try:
                image, (width, height) = row["image"], row["size_wh"]
                size_wh = int(width), int(height)
                items = tuple(detection_from_json(one, size_wh) for one in row["detections"])
                yield str(image), row["stamp"], Detections(items=items, image_wh=size_wh)
            except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
                raise DataError(
                    f"{self.path}, line {number} is damaged ({str(error)[:200]}); remove the file"
                ) from error

    def close(self) -> None:
        """Close the file, which stays."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Remove the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _stamp(image: str) -> list[int] | None:
    """What differs once a file is changed."""
    try:
        found = os.stat(image)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]
