"""Published figures gathered to the rows of the papers, by name; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from paligemma.config import find_release
from paligemma.errors import ConfigError
from paligemma.tasks.catalog import tasks
from paligemma.tasks.published import PublishedScore, published
from paligemma.tasks.task import Task

_OWNERS = {"PaliGemma": "google/paligemma", "PaliGemma 2": "google/paligemma2"}
# A zero-shot figure whose model was trained on VQAv2 is named so; the others are of the model as
# it was released.
_FIRST_TRAINED = "VQAv2"


@dataclass(frozen=True, kw_only=True)
class RowFigures:
    """The figures of one benchmark on one model.

    Attributes:
        task: the benchmark.
        model: hub id of the released model that it begins with.
        is_trained: whether that model was trained first, or measured as it was released.
        figures: what was published, of every measure, split and source.
    """

    task: Task
    model: str
    is_trained: bool
    figures: tuple[PublishedScore, ...]


@cache
def rows_by_name() -> Mapping[str, RowFigures]:
    """The figures of every row of both papers by its name, in the order of the benchmarks."""
    figures: dict[tuple[str, str, bool], list[PublishedScore]] = {}
    for task in tasks().values():
        for one in published(task):
            trains = one.kind == "transfer" or _FIRST_TRAINED in one.model
            figures.setdefault((task.name, _model(one), trains), []).append(one)
    found = {}
    for (name, model, trains), scores in figures.items():
        label = f"{name}/{model.removeprefix('google/')}"
        if not trains and "-pt-" in model:
            label += "-untrained"
        found[label] = RowFigures(
            task=tasks()[name], model=model, is_trained=trains, figures=tuple(scores)
        )
    return found


def _model(score: PublishedScore) -> str:
    kind = "mix" if score.kind == "mix" else "pt"
    if score.size is None or score.resolution is None:
        raise ConfigError(f"a figure of {score.model} states no size; name a released model")
    name = f"{_OWNERS[score.family]}-{score.size.lower()}-{kind}-{score.resolution}"
    find_release(name)
    return name
