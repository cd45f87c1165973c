"""A run on disk: its questions, and every answer as it came; survives a kill.

    run.json           what was run, and how to run it again
    examples.jsonl     the questions with their references, in order
    predictions.jsonl  answers, appended batch by batch; each line carries the run's key

Only predictions.jsonl grows; every other file appears whole or not at all. Nothing here needs a
model, so that runs are read back without one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import Any

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example, Prediction
from paligemma.jobs.json_lines import (
    example_from_json,
    example_to_json,
    prediction_from_json,
    prediction_to_json,
    read_rows,
)
from paligemma.json_file import read_json
from paligemma.one_writer import one_writer
from paligemma.whole_file import write_json, write_whole

RUN, EXAMPLES, PREDICTIONS = "run.json", "examples.jsonl", "predictions.jsonl"
# What evaluation writes beside them: `SCORES` of `eval.report`, `PAGE` and `SHEET` of the commands.
RESULTS = ("scores.json", "report.html", "scenes.png")
_KEY_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Record of a run.

    Attributes:
        task: name of the benchmark.
        split: name of its split.
        model: name of the model, as the user wrote it.
        data: folder of the benchmark's files; None where it needs none.
        settings: everything that changes an answer, as JSON holds it; the key is made of it.
        sampling: limit and seed, which chose the examples.
        command: command that runs it again.
        environment: versions, for the record.
        rules: rules of scoring that are not the benchmark's defaults; no part of the key.
    """

    task: str
    split: str
    model: str
    data: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of task, split and settings; answers of different keys never mix."""
        text = json.dumps([self.task, self.split, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "config_hash": self.key}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], where: str) -> RunConfig:
        """The config of a run.json.

        Raises:
            DataError: a field is missing or of another kind, or the hash does not belong to it.
        """
        names = ("task", "split", "model", "data", "settings", "sampling", "command", "environment")
        missing = [name for name in (*names, "config_hash") if name not in row]
        if missing or not isinstance(row["settings"], dict):
            raise DataError(
                f"{where} must hold {', '.join(names)} and config_hash, misses "
                f"{', '.join(missing) or 'a table of settings'}; it is no run of this program"
            )
        kinds: dict[str, Any] = {"model": str, "data": str | None, "command": str}
        kinds |= {"sampling": dict, "environment": dict, "rules": dict}
        for name, kind in kinds.items():
            if not isinstance(row.get(name, {}), kind):
                raise DataError(
                    f"{where}: {name} is of the wrong kind, got {row[name]!r:.80}; restore the "
                    "file or begin a new run"
                )
        config = cls(**{name: row[name] for name in names}, rules=row.get("rules", {}))
        if config.key != row["config_hash"]:
            raise DataError(
                f"{where} must not be edited: its settings hash to {config.key}, but it says "
                f"{row['config_hash']}; restore it or begin a new run"
            )
        return config


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run read back.

    Attributes:
        path: folder of the run.
        config: record of the run.
        examples: questions in order; those read back from disk have no pictures.
        predictions: answers by example id; those of a run under way are incomplete.
        num_duplicates: number of answers beyond the first to one example, which are left out.
    """

    path: Path
    config: RunConfig
    examples: list[Example]
    predictions: dict[str, Prediction]
    num_duplicates: int = 0

    @property
    def failed(self) -> list[Prediction]:
        """Examples that could not be asked, in order; they are asked again."""
        found = [self.predictions[one.id] for one in self.examples if one.id in self.predictions]
        return [one for one in found if one.error is not None]

    @property
    def missing(self) -> list[str]:
        """Ids of examples without an answer, in order."""
        return [one.id for one in self.examples if one.id not in self.predictions]

    def answered(self) -> tuple[list[Example], list[Prediction]]:
        """Examples that have an answer, and their answers, in one order."""
        examples = [one for one in self.examples if one.id in self.predictions]
        return examples, [self.predictions[one.id] for one in examples]


def _begins_with(path: Path, line: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(len(line)) == line
    except OSError:
        return False


class RunFolder:
    """One run's folder, begun or gone on with.

    Use as a context manager while appending: only one process at a time may write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.num_duplicates = 0
        self._file: BufferedRandom | None = None
        self._open = ExitStack()
        self._config: RunConfig | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: RunConfig, examples: Sequence[Example]
    ) -> RunFolder:
        """Begin a run, or go on with the same one.

        Raises:
            ConfigError: the folder holds a run with other settings, or cannot be written.
        """
        folder = cls(path)
        if not folder.exists():
            with one_writer(folder.path):
                folder._begin(config, examples)
        folder.require_same(config)
        return folder

    def _begin(self, config: RunConfig, examples: Sequence[Example]) -> None:
        if self.exists():  # another process was quicker
            return
        lines = (json.dumps(example_to_json(one)) + "\n" for one in examples)
        first = next(lines, "")
        for name in (PREDICTIONS, EXAMPLES, *RESULTS):
            path = self.path / name
            if name == EXAMPLES and _begins_with(path, first):  # a kill came before run.json
                continue
            if path.is_symlink() or path.is_file():
                raise ConfigError(
                    f"{self.path} holds {name} but no {RUN}, so it is not of a run; name another "
                    "folder, or move that file away"
                )
        write_whole(self.path / EXAMPLES, itertools.chain([first], lines))
        # Last, because its presence means that the folder is complete.
        write_json(self.path / RUN, config.to_json())

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RUN).is_file()

    @property
    def config(self) -> RunConfig:
        """What was run.

        Raises:
            DataError: there is no run, or its run.json is damaged.
        """
        if self._config is None:
            path = self.path / RUN
            self._config = RunConfig.from_json(read_json_object(path), str(path))
        return self._config

    def require_same(self, config: RunConfig) -> None:
        """Raise ConfigError, naming what differs, unless the run here has the same key."""
        ours, theirs = self.config, config
        if ours.key == theirs.key:
            return
        before = {"task": ours.task, "split": ours.split, **ours.settings}
        now = {"task": theirs.task, "split": theirs.split, **theirs.settings}
        raise ConfigError(
            f"{self.path} holds a run with other settings: {differences(before, now)}; repeat the "
            "settings to go on with it, or name a new folder"
        )

    def examples(self) -> list[Example]:
        """The questions, in order, without pictures."""
        path = self.path / EXAMPLES
        found: dict[str, Example] = {}
        for at, row in read_rows(path):
            one = example_from_json(row, f"{path}, line {at}")
            if one.id in found:
                raise DataError(
                    f"{path}, line {at} must hold an id of its own, but {one.id} came before; "
                    "restore the file or begin a new run"
                )
            found[one.id] = one
        return list(found.values())

    def predictions(self) -> dict[str, Prediction]:
        """Answers by example id; a last line cut by a kill is dropped, later duplicates too.

        An error is no answer: whatever comes later for its example takes its place.

        Raises:
            DataError: a damaged line, or one of another run.
        """
        path, key = self.path / PREDICTIONS, self.config.key
        found: dict[str, Prediction] = {}
        self.num_duplicates = 0
        for at, row in read_rows(path, drop_torn=True) if path.exists() else ():
            if row.get("key") != key:
                raise DataError(
                    f"{path}, line {at} belongs to another run: its key is "
                    f"{_short(row.get('key'))}, this run's is {key}; move the line out or name "
                    "another folder"
                )
            one = prediction_from_json(row, f"{path}, line {at}")
            if one.id not in found or found[one.id].error is not None:
                found[one.id] = one
            elif one.error is None:
                self.num_duplicates += 1
        return found

    def read(self, examples: Sequence[Example] | None = None) -> Run:
        """The run as it stands on disk.

        Args:
            examples: its questions with their pictures; read back without them by default.
        """
        predictions = self.predictions()
        return Run(
            path=self.path,
            config=self.config,
            examples=self.examples() if examples is None else list(examples),
            predictions=predictions,
            num_duplicates=self.num_duplicates,
        )

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Write answers to the end; they survive a kill or power cut once this returns."""
        if self._file is None:
            raise RuntimeError("append needs the folder opened by `with`")
        key = self.config.key
        lines = (json.dumps({"key": key, **prediction_to_json(one)}) for one in predictions)
        try:
            self._file.write("".join(line + "\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ConfigError(
                f"answers are added to {self.path / PREDICTIONS}, which failed ({error.strerror}); "
                "those before are kept: make room, or see to its rights, and repeat the command"
            ) from error

    def __enter__(self) -> RunFolder:
        with ExitStack() as stack:
            stack.enter_context(one_writer(self.path))
            try:
                file = open_for_lines(self.path / PREDICTIONS)
            except OSError as error:
                raise ConfigError(
                    f"answers are added to {self.path / PREDICTIONS}, which cannot be written "
                    f"({error.strerror}); make it writable, or name another folder"
                ) from error
            self._file = stack.enter_context(file)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._file = None
        with suppress(OSError):  # What a full disk did not take was said already.
            self._open.close()


def load_run(path: str | os.PathLike[str]) -> Run:
    """A run, complete or under way.

    Raises:
        DataError: there is none, or a file is damaged; the message names file and line.
    """
    return RunFolder(path).read()


def read_json_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        DataError: no such file, or no object in it.
    """
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise DataError(
            f"a run is a folder that holds {path.name}, {path.parent} does not; "
            "name the folder of --output, or the one that `paligemma eval` said it keeps"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be a readable JSON file ({error}); name a run") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold one JSON object, got {type(value).__name__}")
    return value


def examples_digest(examples: Iterable[Example]) -> str:
    """Hash of ids, prompts and marks in order: the part of the examples that answers rest on."""
    digest = hashlib.sha256()
    for one in examples:
        digest.update(json.dumps([one.id, one.prefix, one.mark_box_yxyx]).encode() + b"\n")
    return digest.hexdigest()[:_KEY_DIGITS]


def open_for_lines(path: Path) -> BufferedRandom:
    """Open a file that lines are added to, after its last complete one; it may be new.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    file = os.fdopen(os.open(path, flags, 0o666), "r+b")
    cut_torn_line(file)
    return file


def cut_torn_line(file: BufferedRandom) -> None:
    """Leave the file at its end, after the last complete line."""
    end = last = file.seek(0, os.SEEK_END)
    while last:
        start = max(0, last - (1 << 16))
        file.seek(start)
        at = file.read(last - start).rfind(b"\n")
        if at >= 0:
            last = start + at + 1
            break
        last = start
    if last < end:
        file.truncate(last)
    file.seek(last)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between the settings of two runs, as JSON holds them, in words."""
    return "; ".join(
        f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
