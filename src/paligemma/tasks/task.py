"""A benchmark as one row, shared by training and evaluation.

A row names the source of its files, their reader, the prompt and decoding, the scorer, and the
published figures. Readers stream; nothing here needs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.errors import ConfigError, DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.tasks.reading.hub_columns import HUB_COPIES, HubCopy

if TYPE_CHECKING:
    from paligemma.outputs.vqvae import MaskCodec


@dataclass(frozen=True)
class NeededFile:
    """One file or folder below the data folder.

    Attributes:
        path: relative path, with {split} where it varies.
        fields: fields that are read from it.
    """

    path: str
    source: str
    fields: str = field(default="", kw_only=True)


def files_from(source: str, *files: str | tuple[str, str] | NeededFile) -> tuple[NeededFile, ...]:
    """List the files of a benchmark, most of them from one source.

    Args:
        source: place where the user can get the files that do not name another.
        files: path of each, alone or with the fields that are read from it; or a whole file.
    """

    def needed(one: str | tuple[str, str] | NeededFile) -> NeededFile:
        if isinstance(one, NeededFile):
            return one
        path, fields = (one, "") if isinstance(one, str) else one
        return NeededFile(path, source, fields=fields)

    return tuple(map(needed, files))


@dataclass(frozen=True, kw_only=True)
class PublishedKey:
    """Place of a figure of this task in `published_scores.json`.

    Attributes:
        task, split, metric: names in the records, which spell one benchmark in several ways.
        our_split: our split with which it is comparable; None where only a test server gives it.
    """

    measure: str
    task: str
    split: str
    metric: str
    our_split: str | None


def published_keys(
    measure: str, metric: str, *places: tuple[str, str, str | None]
) -> tuple[PublishedKey, ...]:
    """Build the keys of one measure.

    Args:
        places: task, split and our split of each key; see `PublishedKey`.
    """
    return tuple(
        PublishedKey(measure=measure, task=task, split=split, metric=metric, our_split=our_split)
        for task, split, our_split in places
    )


Reader = Callable[[Path, str], Iterator[Example]]
# (rows with the names of the official fields, each with its picture; data folder; split) ->
# examples: what the official reader and the reader of hub copies share.
Builder = Callable[[Iterator[Any], Path, str], Iterator[Example]]
# (examples, predictions, rules that the task offers by name) -> figures.
Scorer = Callable[..., list[Measure]]
# (examples, predictions) -> the answers as a test server takes them, as JSON holds them.
Submitter = Callable[[Sequence[Example], Sequence[Prediction]], Any]
# (example, generator) -> the example as one visit of training shows it.
Redraw = Callable[[Example, np.random.Generator], Example]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark.

    Attributes:
        family: page of the documentation: captions, answers, documents, remote-sensing, pairs,
            video, grounding, robustness, structure.
        splits: splits that can be scored from files on disk; the first is the reported one.
        score: computes the figures of examples and their predictions, the headline first.
        transfer: name of the published transfer recipe whose model answers it.
        is_zero_shot: whether that model was trained on another task.
        asking_for: gives the asking of one example, where a benchmark mixes kinds; None asks all
            alike.
        server_splits: splits that can be read and answered, but that only a test server can score.
        submission: writes the answers as that server takes them; None where there is none.
        rules: choices of scoring that no paper settles: name of an argument of `score` -> its
            values, the default first.
        draws_targets: whether the recipe draws one of several answers at each visit, with
            replacement; else each is shown before one is shown again.
        redraw: what training draws anew at each visit of an example, where the recipe does so.
        from_rows: makes the examples of a hub copy's rows; None where no copy is read.
        row_reader: streams a split with an error in the place of each bad row, where rows are a
            user's own; None where files are official, and a bad row means a bad file.
        with_masks: adds to the references of an example masks that only its picture's size or the
            mask codec of the model tells; None where the reader gives all.
    """

    name: str
    title: str
    family: str
    splits: tuple[str, ...]
    headline: str
    asking: Asking
    files: tuple[NeededFile, ...]
    reader: Reader
    score: Scorer
    published: tuple[PublishedKey, ...] = ()
    traps: tuple[str, ...] = ()
    transfer: str | None = None
    is_zero_shot: bool = False
    asking_for: Callable[[Example], Asking] | None = None
    server_splits: tuple[str, ...] = ()
    submission: Submitter | None = None
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    draws_targets: bool = False
    redraw: Redraw | None = None
    from_rows: Builder | None = None
    row_reader: Callable[[Path, str], Iterator[Example | DataError]] | None = None
    with_masks: Callable[[Example, MaskCodec | None], Example] | None = None

    def rows(self, data: Path, split: str) -> Iterator[Example | DataError]:
        """Stream the examples of one split, with an error in the place of a bad row if possible.

        Raises:
            ConfigError, DataError: as `read`.
        """
        if self.row_reader is None:
            yield from self.read(data, split)
        else:
            yield from self.row_reader(data, split)

    @property
    def hub_copy(self) -> HubCopy | None:
        """How its parquet copies look; None where none is read."""
        return None if self.from_rows is None else HUB_COPIES[self.name]

    def asks(self, example: Example) -> Asking:
        """How one example is asked."""
        return self.asking if self.asking_for is None else self.asking_for(example)

    def read(self, data: Path, split: str) -> Iterator[Example]:
        """Stream the examples of one split.

        Raises:
            ConfigError: another split.
            DataError: a file is missing or wrong; names file, row and field.
        """
        known = (*self.splits, *self.server_splits)
        if split not in known:
            raise ConfigError(
                f"{self.name} has the splits {', '.join(known)}, got {split!r}; name one of them"
            )
        return self._read(data, split)

    def default_split(self, data: Path | None) -> str:
        """The split where none is named: the first, or else the first that a hub copy holds."""
        from paligemma.tasks.reading import hub_copies

        copy = self.hub_copy
        if data is not None and copy is not None and hub_copies.copy_tables(data, copy):
            for split in (*self.splits, *self.server_splits):
                with suppress(DataError):
                    if next(self.read(data, split), None) is not None:
                        return split
        return self.splits[0]

    def _read(self, data: Path, split: str) -> Iterator[Example]:
        """Read a hub copy where the folder holds one, else the official files."""
        from paligemma.tasks.reading import hub_copies

        copy = self.hub_copy
        tables = [] if copy is None else hub_copies.copy_tables(data, copy)
        if copy is not None and self.from_rows is not None and tables:
            rows = hub_copies.copy_rows(data, split, copy, tables)
            yield from self.from_rows(rows, data, split)
            return
        try:
            examples = iter(self.reader(data, split))
            first = next(examples, None)
        except DataError as error:
            unread = None if self.row_reader else hub_copies.unread_copy(data, copy)
            if unread is None:
                raise
            raise DataError(f"{error}; {unread}") from error
        if first is not None:
            yield first
            yield from examples
