"""What a benchmark is: one row, shared by training and evaluation.

A row says where its files come from, how they are read, how the model is asked, how answers are
scored, and what was published. Readers stream; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure


@dataclass(frozen=True)
class NeededFile:
    """One file or folder below the data folder.

    Attributes:
        path: relative path, with {split} where it varies.
        source: where it comes from, in words.
        fields: fields that are read from it.
    """

    path: str
    source: str
    fields: str = field(default="", kw_only=True)


@dataclass(frozen=True, kw_only=True)
class PublishedKey:
    """Where `published_scores.json` holds a figure of this task.

    Attributes:
        measure: our name of the figure.
        task, split, metric: as in the records; several spellings of one benchmark occur there.
        our_split: our split that it is comparable with; None where only a test server gives it.
    """

    measure: str
    task: str
    split: str
    metric: str
    our_split: str | None


def published_keys(
    measure: str, metric: str, *places: tuple[str, str, str | None]
) -> tuple[PublishedKey, ...]:
    """Where the records hold the figures of one measure.

    Args:
        measure: our name of the figure.
        metric: theirs.
        places: task and split as the records name them, and our split; see `PublishedKey`.
    """
    return tuple(
        PublishedKey(measure=measure, task=task, split=split, metric=metric, our_split=our_split)
        for task, split, our_split in places
    )


Reader = Callable[[Path, str], Iterator[Example]]
# Examples, predictions, and by name the rules that the task offers -> figures.
Scorer = Callable[..., list[Measure]]
# Examples, predictions -> the answers as a test server takes them, as JSON would hold them.
Submitter = Callable[[Sequence[Example], Sequence[Prediction]], Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark.

    Attributes:
        name: on the command line.
        title: as people write it.
        family: page of the documentation: captions, answers, documents, remote-sensing, pairs,
            video, grounding, robustness, structure.
        splits: that can be scored from files on disk; the first is the reported one.
        headline: name of the measure that tables print.
        asking: how the model is asked.
        files: what must be on disk.
        read: streams examples of one split; raises DataError naming file, row and field.
        score: examples with their predictions, in one order -> figures, the headline first.
        published: where published figures are found.
        traps: one sentence each, what people get wrong.
        transfer: name of the published transfer recipe whose model answers it.
        is_zero_shot: the recipe was trained on another task.
        asking_for: how one example is asked, where a benchmark mixes kinds; None asks all alike.
        server_splits: that can be read and answered, but whose answers only a test server has.
        submission: what that server takes; None where there is none.
        rules: what no paper says of scoring: name of an argument of `score` -> its choices, the
            default first.
    """

    name: str
    title: str
    family: str
    splits: tuple[str, ...]
    headline: str
    asking: Asking
    files: tuple[NeededFile, ...]
    read: Reader
    score: Scorer
    published: tuple[PublishedKey, ...] = ()
    traps: tuple[str, ...] = ()
    transfer: str | None = None
    is_zero_shot: bool = False
    asking_for: Callable[[Example], Asking] | None = None
    server_splits: tuple[str, ...] = ()
    submission: Submitter | None = None
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
