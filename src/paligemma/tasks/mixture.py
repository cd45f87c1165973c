"""Several sets of rows as one: what `train --mixture` reads and measures with.

    sources:
      cards: {data: cards/, weight: 3, augment: [flip, crop]}
      documents: {data: docvqa/, task: docvqa, limit: 5000}

Weights are normalised; without one a source has 1. Folders are relative to the file.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import ConfigError, DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.processing.augment import Augmentation
from paligemma.tasks.catalog import find_task
from paligemma.tasks.own.found import SPLITS, split_names
from paligemma.tasks.own.hub_set import is_hub_set, pinned
from paligemma.tasks.task import Task

logger = logging.getLogger(__name__)

MIXTURE, SOURCE = "mixture", "source"
_MAX_BYTES, _MAX_SOURCES = 64 << 10, 256
_MAX_WEIGHT = 1e9
_KEYS = ("data", "task", "weight", "limit", "augment")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One set of a mixture.

    Attributes:
        name: its name in ids, figures and sentences.
        data: folder or file of its rows.
        task: benchmark whose files these are.
        weight: its part of the rows that are drawn, relative to the other weights.
        limit: learn from its first rows only.
        augment: policies of its own, in the place of the run's; None takes the run's.
    """

    name: str
    data: Path
    task: Task = field(repr=False)
    weight: float = 1.0
    limit: int | None = None
    augment: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The source as JSON holds it."""
        plain = {**asdict(replace(self, task=None)), "task": self.task.name}  # type: ignore[arg-type]
        return {**plain, "data": str(self.data)}


@dataclass(frozen=True)
class Mixture:
    """Sources in their order; the first one's headline is the mixture's."""

    sources: tuple[Source, ...]

    def task(self) -> Task:
        """The mixture as a benchmark: rows of all sources, figures of each by its own scorer."""
        first = self.sources[0]
        return Task(
            name=MIXTURE,
            title="A mixture of several sets",
            family="own",
            splits=SPLITS,
            headline=f"{first.name}.{first.task.headline}",
            asking=first.task.asking,
            files=(),
            reader=self._good_rows,
            row_reader=self._rows,
            score=self._score,
            asking_for=self._asking,
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights as they are stated."""
        return tuple(one.weight for one in self.sources)

    def require_rows(self, examples: Sequence[Example]) -> None:
        """Raise DataError for a source without any row to learn from."""
        found = {one.slices[SOURCE] for one in examples}
        if missing := [one for one in self.sources if one.name not in found]:
            raise DataError(
                f"source {missing[0].name!r} of the mixture has no row to learn from in "
                f"{missing[0].data}; `paligemma data check` says why, correct or remove it"
            )

    def place_of(self, example: Example) -> int:
        """The number of the source that an example comes from."""
        return self._places[str(example.slices[SOURCE])]

    @property
    def _places(self) -> dict[str, int]:
        return {one.name: place for place, one in enumerate(self.sources)}

    def _asking(self, example: Example) -> Asking:
        return self.sources[self.place_of(example)].task.asks(example)

    def _good_rows(self, data: Path, split: str) -> Iterator[Example]:
        return (one for one in self._rows(data, split) if isinstance(one, Example))

    def _rows(self, _: Path, split: str) -> Iterator[Example | DataError]:
        names = split_names(split) if split != "test" else ("test",)
        for source in self.sources:
            known = (*source.task.splits, *source.task.server_splits)
            theirs = next((name for name in names if name in known), None)
            try:
                if theirs is None:
                    raise DataError(f"{source.task.name} has no split {split}")
                yield from self._rows_of(source, theirs, split)
            except (DataError, ConfigError) as error:
                if split == "train":
                    raise DataError(f"source {source.name!r} of the mixture: {error}") from error
                logger.info("source %s has no rows of %s: %s", source.name, split, error)

    def _rows_of(self, source: Source, theirs: str, split: str) -> Iterator[Example | DataError]:
        if split != "train" and source.data.is_file():
            return
        marked = {SOURCE: source.name}
        limit = source.limit if split == "train" else None
        for one in islice(source.task.rows(source.data, theirs), limit):
            if isinstance(one, DataError):
                yield one
                continue
            slices = {**one.slices, **marked} if one.slices else marked
            yield replace(one, id=f"{source.name}/{one.id}", slices=slices)

    def _score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Any]:
        found: list[Measure] = []
        for place, source in enumerate(self.sources):
            rows = np.array([k for k, one in enumerate(examples) if self.place_of(one) == place])
            if not rows.size:
                continue
            start = len(source.name) + 1
            measures = source.task.score(
                [replace(examples[k], id=examples[k].id[start:]) for k in rows],
                [replace(predictions[k], id=predictions[k].id[start:]) for k in rows],
            )
            found += [_of_source(one, source.name, rows, len(examples)) for one in measures]
        return found


def _of_source(measure: Measure, name: str, rows: np.ndarray, num: int) -> Measure:
    """A figure of one source as a figure over the rows of all."""
    parts = measure.per_example
    if parts is not None:
        spread = np.full(num, math.nan)
        spread[rows] = parts
        parts = spread
    return replace(
        measure,
        name=f"{name}.{measure.name}",
        statistic=lambda counts: measure.statistic(counts[rows]),
        num=num,
        num_used=len(rows) if measure.num_used is None else measure.num_used,
        per_example=parts,
    )


def read_mixture(given: Path | Mapping[str, Any]) -> Mixture:
    """Read the sources of a mixture from a file, or from what such a file holds.

    Args:
        given: a file (.json, .toml, or .yaml where PyYAML is installed), or its content.

    Raises:
        DataError: the file is missing, too large or damaged.
        ConfigError: a source has an unknown key or a value out of its range.
    """
    if isinstance(given, Mapping):
        where, folder, content = "the mixture", Path(), given
    else:
        where, folder, content = str(given), given.parent, _content(given)
    sources = content.get("sources", content) if isinstance(content, Mapping) else None
    if not isinstance(sources, Mapping) or not 1 <= len(sources) <= _MAX_SOURCES:
        raise ConfigError(
            f"{where} must hold 1 to {_MAX_SOURCES} sources by name, such as "
            '{"sources": {"cards": {"data": "cards/", "weight": 3}}}; write it so'
        )
    return Mixture(tuple(_source(str(name), one, where, folder) for name, one in sources.items()))


def _content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise DataError(
                f"a mixture has at most {_MAX_BYTES} bytes, {path} has more; shorten it"
            )
        text = data.decode()
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix in (".yaml", ".yml"):
            return _yaml(text, path)
        return json.loads(text, object_pairs_hook=_object)
    except (OSError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(
            f"a mixture is a readable file of JSON, TOML or YAML, {path} is not: {said}"
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require_different([name for name, _ in pairs])
    return dict(pairs)


def _require_different(names: list[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r:.80} stands there twice, rename or remove one")


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            f"{path} needs PyYAML, which is not installed: pip install 'paligemma[yaml]', or write "
            "the mixture as .json or .toml"
        ) from None

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _require_different([str(key.value) for key, _ in node.value])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _source(name: str, one: Any, where: str, folder: Path) -> Source:
    place = f"{where}, source {name!r}"
    if isinstance(one, str):
        one = {"data": one}
    if not isinstance(one, Mapping) or not isinstance(one.get("data"), str):
        raise ConfigError(f"{place}: it must name its folder in data; add it")
    if unknown := sorted({str(key) for key in one} - set(_KEYS)):
        raise ConfigError(
            f"{place}: a source has {', '.join(_KEYS)}, got {unknown[0]!r}; correct or remove it"
        )
    if not name.isprintable() or "/" in name or not 1 <= len(name) <= 100:
        raise ConfigError(f"{place}: a name has 1 to 100 characters and no slash; rename it")
    weight, limit, augment = one.get("weight", 1.0), one.get("limit"), one.get("augment")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 1 / _MAX_WEIGHT <= weight <= _MAX_WEIGHT:
        raise ConfigError(
            f"{place}: weight must be a positive number from {1 / _MAX_WEIGHT:g} to "
            f"{_MAX_WEIGHT:g}, got {weight!r:.80}"
        )
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigError(f"{place}: limit must be a count of rows, got {limit!r:.80}")
    if isinstance(augment, str):
        augment = [word.strip() for word in augment.split(",") if word.strip()]
    if augment is not None and not (
        isinstance(augment, list | tuple) and all(isinstance(word, str) for word in augment)
    ):
        raise ConfigError(f"{place}: augment must be a list of policies, got {augment!r:.80}")
    Augmentation.of(augment or ())
    if is_hub_set(one["data"]):
        data = pinned(one["data"])
    else:
        data = folder / os.path.expanduser(one["data"])
    if not is_hub_set(data) and not os.path.exists(data):
        raise DataError(f"{place}: rows lie in a file or a folder, there is no {str(data)!r:.300}")
    return Source(
        name=name,
        data=data,
        task=find_task(str(one.get("task", "own"))),
        weight=float(weight),
        limit=limit,
        augment=None if augment is None else tuple(augment),
    )
