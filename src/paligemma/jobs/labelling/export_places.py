"""Where a labelling writes COCO and YOLO: no file of others is replaced, its own ones are.

`exports.json` in the folder of the labelling has the files that it wrote, with size and time of
each, so that the same command writes them again as long as nobody changed them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import ConfigError
from paligemma.jobs.labelling.exports import DATA_YAML, LABELS, write_coco, write_yolo
from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.jobs.run_folder import read_json_object
from paligemma.one_writer import one_writer
from paligemma.whole_file import remove_unfinished, require_writable, write_json

EXPORTS = "exports.json"


@dataclass(frozen=True, kw_only=True)
class ExportPlaces:
    """Files for other tools.

    Attributes:
        labels: folder of the labelling.
        coco: file of all objects; None writes none.
        yolo: folder of label files and data.yaml; None writes none.
        overwrite: the user's leave to replace what is there.
    """

    labels: Path
    coco: Path | None = None
    yolo: Path | None = None
    overwrite: bool = False

    def require_free(self) -> None:
        """Check, before the work whose results go there, that nothing of others is replaced.

        Raises:
            ConfigError: a file is there that this labelling did not write, or that was changed
                since; or a place cannot be written.
        """
        if not self.overwrite:
            for path in self._not_own():
                raise ConfigError(
                    f"a file that is there is kept, got {path}, which this labelling did not "
                    "write, or which was changed since; name another, or allow it with --overwrite"
                )
        if self.coco is not None:
            require_writable(self.coco.parent)
        if self.yolo is not None:
            require_writable(self.yolo / LABELS)

    def write(self, folder: LabelFolder, asked: Sequence[str]) -> Iterator[Path]:
        """Write each of them, while no other process may write labels; yields what was written.

        Args:
            asked: labels of the prompt, which get the first numbers.

        Raises:
            DataError: see `write_coco` and `write_yolo`.
            ConfigError: another process writes labels or has begun parts again, or see those.
        """
        if self.coco is None and self.yolo is None:
            return
        with one_writer(self.labels):
            _require_whole(folder)
            if self.coco is not None:
                self._note(self.coco, None)
                _remove_unfinished(self.coco)
                write_coco(self.coco, folder, asked)
                self._note(self.coco, _stamp(self.coco))
                yield self.coco
            if self.yolo is not None:
                last = self.yolo / DATA_YAML
                self._note(last, None)
                _remove_unfinished(last)
                write_yolo(self.yolo, folder, asked)
                self._note(last, _stamp(last))
                yield self.yolo

    def _known(self) -> dict[str, Any]:
        path = self.labels / EXPORTS
        return read_json_object(path) if path.is_file() else {}

    def _note(self, path: Path, stamp: list[int] | None) -> None:
        """Note a file as one of this labelling; without a stamp it is being written."""
        write_json(self.labels / EXPORTS, {**self._known(), os.path.abspath(path): stamp})

    def _not_own(self) -> Iterator[Path]:
        known = self._known()
        if self.coco is not None and not _is_own(self.coco, known):
            yield self.coco
        if self.yolo is not None:
            last = self.yolo / DATA_YAML
            if not _is_own(last, known):
                yield last
            # It is written behind all label files.
            stamp = known.get(os.path.abspath(last), [0, 0])
            if stamp is not None:
                for path in _files_below(self.yolo / LABELS):
                    if os.lstat(path).st_mtime_ns > stamp[1]:
                        yield path


def _require_whole(folder: LabelFolder) -> None:
    """Refuse to export labels of which parts are missing, as where rows are asked again."""
    missing = {part.number for part in folder.parts()} - folder.done()
    if missing:
        raise ConfigError(
            f"{folder.path} lacks {len(missing):,} parts, which another process began again; "
            "repeat the command, which asks them and writes the files then"
        )


def _remove_unfinished(path: Path) -> None:
    remove_unfinished(path.parent, re.compile(re.escape(path.name)))


def _is_own(path: Path, known: dict[str, Any]) -> bool:
    """Whether nothing is there, or what this labelling wrote."""
    place = os.path.abspath(path)
    if not os.path.lexists(path):
        return True
    return place in known and known[place] in (None, _stamp(path))


def _stamp(path: Path) -> list[int]:
    status = os.lstat(path)
    return [status.st_size, status.st_mtime_ns]


def _files_below(folder: Path) -> Iterator[Path]:
    for top, _, names in os.walk(folder):
        yield from (Path(top, name) for name in sorted(names))
