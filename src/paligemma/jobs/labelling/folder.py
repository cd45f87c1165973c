"""The folder of a labelling: parts that are there whole or not at all, and what is known of them.

    batch.json         what was asked, of which model and input; answers of two keys never mix
    pictures.jsonl     names of the pictures, where a folder or a pattern was named
    parts.jsonl        where each part begins in the input
    labels-*           answered rows, a file a part, which is done once its file is there
    quarantine/        rows without an answer, and why; a file a part that has some
    log.jsonl          seconds of each part, for `paligemma plan batch`
    begun.jsonl        what was being answered when a process died
    exports.json       COCO and YOLO files that were written; see `export_places`

Memory and the time to go on depend on the number of parts, not of rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from paligemma.errors import ConfigError, DataError
from paligemma.jobs.json_lines import read_rows
from paligemma.jobs.labelling.inputs import Place
from paligemma.jobs.labelling.records import FORMATS, Record, encoded, read_records
from paligemma.jobs.run_folder import differences, open_for_lines, read_json_object
from paligemma.one_writer import one_writer
from paligemma.whole_file import remove_unfinished, whole_file, write_json

BATCH, PARTS, LOG, BEGUN = "batch.json", "parts.jsonl", "log.jsonl", "begun.jsonl"
LISTING = "pictures.jsonl"
QUARANTINE = "quarantine"
_LINES = (PARTS, LOG, BEGUN)
_KEY_DIGITS = 16
_PART = re.compile(r"labels-(\d{8,12})\.(?:jsonl|parquet)")
# Files that are written whole, in the folder and in that of the bad rows.
_WRITTEN = re.compile(
    r"labels-\d{8,12}\.(jsonl|parquet)|part-\d{8,12}\.jsonl|pictures\.jsonl|(batch|exports)\.json"
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of the input that are written together.

    Attributes:
        number: from 0.
        first_row: number of its first row in the whole input, from 0.
        num_rows: bad ones included.
        start: place of the first row.
    """

    number: int
    first_row: int
    num_rows: int
    start: Place


class LabelFolder:
    """One labelling, begun or gone on with; a context manager while it is written.

    Args:
        path: folder, which may be new.
        form: "jsonl" or "parquet".
    """

    def __init__(self, path: str | os.PathLike[str], form: str = "jsonl") -> None:
        if form not in FORMATS:
            raise ConfigError(f"rows are written as one of {', '.join(FORMATS)}, got {form!r:.80}")
        self.path, self.form = Path(path), form
        self.key = ""
        self._files: dict[str, BufferedRandom] = {}
        self._begun_bytes = 0  # of begun.jsonl, before this run
        self._open = ExitStack()

    def begin(self, settings: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write batch.json, or check that the one there is of the same labelling.

        Args:
            settings: everything that changes an answer or its place, as JSON holds it.
            record: what else a reader wants to know, such as the command.

        Raises:
            ConfigError: the folder holds another labelling; names what differs.
        """
        settings = json.loads(json.dumps({**settings, "format": self.form}))
        text = json.dumps(settings, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]
        path = self.path / BATCH
        if not path.is_file():
            write_json(path, {"key": self.key, "settings": settings, **record})
            return
        before = read_json_object(path).get("settings")
        if before != settings:
            was = before if isinstance(before, dict) else {}
            raise ConfigError(
                f"{self.path} holds a labelling with other settings: "
                f"{differences(was, settings)}; repeat the settings to go on with it, or name a "
                "new folder"
            )

    def __enter__(self) -> LabelFolder:
        with ExitStack() as stack:
            stack.enter_context(one_writer(self.path))
            if not (self.path / BATCH).is_file():
                self._require_none_of_others()
            path = self.path / QUARANTINE
            try:
                path.mkdir(exist_ok=True)
                for name in _LINES:
                    path = self.path / name
                    self._files[name] = stack.enter_context(open_for_lines(path))
                    # Lines are added without a buffer, which a full disk would leave filled.
                    end = os.lseek(self._files[name].fileno(), 0, os.SEEK_END)
                    self._begun_bytes = end if name == BEGUN else self._begun_bytes
                for path in (self.path, self.path / QUARANTINE):
                    remove_unfinished(path, _WRITTEN)
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be written ({error.strerror}); make it writable, or name "
                    "another folder"
                ) from error
            self._open = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._files = {}
        if not (self.path / BATCH).exists():  # Nothing was begun, and nothing is left.
            for name in (*_LINES, LISTING):
                (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):
                (self.path / QUARANTINE).rmdir()
        self._open.close()

    def _require_none_of_others(self) -> None:
        """Refuse a folder without a labelling that holds files of the names of one.

        A run that was killed before it began leaves its files of lines, all empty, and a listing,
        which may be of another input and is written anew.
        """
        lines = [name for name in _LINES if os.path.lexists(self.path / name)]
        others = [name for name in lines if os.lstat(self.path / name).st_size]
        if os.path.lexists(self.path / LISTING) and (others or len(lines) < len(_LINES)):
            others.append(LISTING)
        if self._done():
            others = ["files of labels"]
        if others:
            raise ConfigError(
                f"{self.path} holds {', '.join(others)} but no {BATCH}, so it is not of a "
                "labelling; name another folder"
            )
        (self.path / LISTING).unlink(missing_ok=True)

    # What is there

    def label_files(self) -> list[Path]:
        """The files of all parts that are done, in order."""
        return [self.path / name for _, name in sorted(self._done().items())]

    def quarantine_files(self) -> list[Path]:
        """The files of rows without an answer, in order."""
        return sorted((self.path / QUARANTINE).glob("part-*.jsonl"))

    def done(self) -> set[int]:
        """Numbers of the parts that are done."""
        return set(self._done())

    def _done(self) -> dict[int, str]:
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries]
        return {int(found[1]): name for name in names if (found := _PART.fullmatch(name))}

    def parts(self) -> list[Part]:
        """The parts that were planned, in order.

        Raises:
            DataError: a line is damaged, or does not follow the one before.
        """
        found: list[Part] = []
        number = first = 0
        for line, row in read_rows(self.path / PARTS, drop_torn=True):
            num, start = row.get("num_rows"), row.get("start")
            follows = row.get("part") == number and row.get("first_row") == first
            place = tuple(start) if isinstance(start, list) else ()
            is_place = bool(place) and all(type(at) is int and at >= 0 for at in place)
            if not (follows and type(num) is int and num > 0 and is_place):
                raise DataError(
                    f"{self.path / PARTS}, line {line} is no part behind those before it; remove "
                    "the file, and repeat the command, which plans them again"
                )
            found.append(Part(number=number, first_row=first, num_rows=num, start=place))
            number, first = number + 1, first + num
        return found

    def deaths(self) -> Counter[tuple[int, int | None]]:
        """How often a process died over a part, and over a row of a part that is asked alone.

        Raises:
            DataError: a line is damaged.
        """
        count: Counter[tuple[int, int | None]] = Counter()
        for line, note in read_rows(self.path / BEGUN, drop_torn=True):
            part, row = note.get("part"), note.get("row")
            if type(part) is not int or not isinstance(row, int | None):
                raise DataError(
                    f"{self.path / BEGUN}, line {line} names no part; remove the file, and repeat "
                    "the command"
                )
            count[part, row] += -1 if note.get("ended") else 1
        return count

    def log(self) -> Iterator[Record]:
        """The lines of the log: of a run, which has `processes` and `ready`, the seconds until
        they could begin; then of its parts: part, rows, quarantined, bytes, seconds of computing,
        and `at`, seconds since the run began."""
        return (row for _, row in read_rows(self.path / LOG, drop_torn=True))

    # What is added

    def note_run(self, num_processes: int, ready: float) -> None:
        """Note in the log that so many processes begin, so many seconds after the command."""
        self._append(LOG, {"processes": num_processes, "ready": round(ready, 3)})

    def add_part(self, part: Part) -> None:
        """Note where a part begins."""
        row = {"part": part.number, "first_row": part.first_row, "num_rows": part.num_rows}
        self._append(PARTS, {**row, "start": list(part.start)})

    def note_begun(self, part: int, row: int | None = None, *, ended: bool = False) -> None:
        """Note that a part, or a row alone, is about to be answered, or that it came to an end."""
        note: Record = {"part": part} if row is None else {"part": part, "row": row}
        self._append(BEGUN, {**note, "ended": True} if ended else note)

    def take_back_begun(self) -> None:
        """Drop what this run noted as begun: it comes to an end, and no process died over it.

        A full disk takes no note that something ended, but lets a file be cut.
        """
        number = self._files[BEGUN].fileno()
        os.ftruncate(number, self._begun_bytes)
        os.lseek(number, 0, os.SEEK_END)

    def finish(
        self,
        part: Part,
        records: Sequence[Record],
        refused: Sequence[Record],
        figures: Mapping[str, Any],
    ) -> None:
        """Write a part; once this returns it survives a power cut.

        Raises:
            ConfigError: the disk takes no more; what was done before is kept.
        """
        path = self.path / f"labels-{part.number:08d}.{self.form}"
        bad = self.path / QUARANTINE / f"part-{part.number:08d}.jsonl"
        data = encoded([{**one, "key": self.key} for one in records], self.form)
        try:
            if refused:
                _write(bad, encoded(refused, "jsonl"))
            else:
                bad.unlink(missing_ok=True)
            row = {"part": part.number, "rows": part.num_rows, "quarantined": len(refused)}
            self._append(LOG, {**row, "bytes": len(data), **figures})
            # Last, because its presence means that the part is done.
            _write(path, data)
        except OSError as error:
            raise ConfigError(
                f"labels are written to {path}, which failed ({error.strerror}); those before are "
                "kept: make room, or see to its rights, and repeat the command"
            ) from error

    def reopen_quarantined(self) -> int:
        """Drop the parts that have rows without an answer, so that they are asked again.

        Returns:
            Their number.
        """
        done, files = self._done(), self.quarantine_files()
        for path in files:
            name = done.get(int(path.stem.partition("-")[2]))
            if name is not None:
                (self.path / name).unlink()
        self._begun_bytes = 0
        self.take_back_begun()
        return len(files)

    def records(self) -> Iterator[Record]:
        """All answered rows that are there, in order."""
        for path in self.label_files():
            yield from read_records(path)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        data = json.dumps(row).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._files[name].fileno(), data) :]
        except OSError as error:
            raise ConfigError(
                f"a line is added to {self.path / name}, which failed ({error.strerror}); labels "
                "that are there are kept: make room, or see to its rights, and repeat the command"
            ) from error


def _write(path: Path, data: bytes) -> None:
    with whole_file(path, sync=True) as partial:
        partial.write_bytes(data)
