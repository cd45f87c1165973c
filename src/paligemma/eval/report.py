"""What a run scored beside what was published: rows for the terminal, for JSON and for the page."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paligemma.eval.example_scores import ExampleScores
from paligemma.eval.resampling import FEW_RESAMPLES, resampled_values, unit_of
from paligemma.eval.scored import Scored
from paligemma.eval.scoring import limited, slice_members
from paligemma.example import Prediction
from paligemma.jobs.run_folder import RunConfig
from paligemma.metrics.interval import bounds
from paligemma.metrics.measure import Measure

if TYPE_CHECKING:
    from paligemma.tasks.published import PublishedScore

# More values of one slice than this are ids rather than kinds; the largest are shown.
MAX_SLICE_VALUES = 24
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What decides which published figures a model is held against.

    Attributes:
        family: "PaliGemma" or "PaliGemma 2"; None where unknown.
        size: "3B", "10B" or "28B"; None where unknown.
        resolution_px: side of the input; None where unknown.
    """

    family: str | None = None
    size: str | None = None
    resolution_px: int | None = None

    def matches(self, one: PublishedScore) -> bool:
        ours = (self.family, self.size, self.resolution_px)
        return ours == (one.family, one.size, one.resolution)

    def __str__(self) -> str:
        if self.family is None:
            return "a model of no published size"
        return f"{self.family} {self.size} at {self.resolution_px} px"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, in the unit of published tables.

    Attributes:
        measure: its name; a slice that the scorer itself reports follows a slash.
        by, group: name and value of the slice of examples it is limited to; "" for all.
        value: the figure; NaN where it is undefined.
        low, high: bounds of its 95 % bootstrap interval; NaN where there is none.
        num: examples it rests on.
        num_resamples: that the interval rests on.
        is_error: better low.
        published: comparable published figures of the same model size and resolution.
    """

    measure: str
    by: str = ""
    group: str = ""
    value: float
    low: float
    high: float
    num: int
    num_resamples: int
    is_error: bool = False
    published: tuple[PublishedScore, ...] = ()

    @property
    def difference(self) -> float | None:
        """Ours minus the first published figure; None without one."""
        return self.value - self.published[0].value if self.published else None

    @property
    def holds_published(self) -> bool | None:
        """Whether the interval holds the published figure; None without one or the other."""
        if not self.published or math.isnan(self.low):
            return None
        return self.low <= self.published[0].value <= self.high

    def to_json(self) -> dict[str, Any]:
        """Numbers as tables print them; null where undefined."""
        row: dict[str, Any] = {"measure": self.measure}
        if self.by:
            row |= {"by": self.by, "group": self.group}
        row |= {"value": _number(self.value), "low": _number(self.low), "high": _number(self.high)}
        row |= {"num": self.num, "num_resamples": self.num_resamples}
        if self.is_error:
            row["is_error"] = True
        if self.published:
            row["published"] = [published_json(one) for one in self.published]
            row["difference"] = _number(self.value - self.published[0].value)
        return row


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything a page or a table says of a run.

    Attributes:
        scored: the run.
        identity: of the model.
        rows: the scorer's figures, the headline first.
        slices: the headline by each slice of the examples.
        elsewhere: published figures that are not comparable: of test servers.
        ids_hash: of the scored ids in order; equal hashes mean the same examples.
    """

    scored: Scored
    identity: ModelIdentity
    rows: tuple[Row, ...]
    slices: tuple[Row, ...] = ()
    elsewhere: tuple[PublishedScore, ...] = ()
    ids_hash: str = ""

    @property
    def headline(self) -> Row:
        name = self.scored.headline.name
        return next(one for one in self.rows if one.measure == name)

    def to_json(self) -> dict[str, Any]:
        """The run, its figures with intervals, what was published, and how to repeat it."""
        config = self.scored.config
        return {
            "format": FORMAT,
            "task": config.task,
            "split": config.split,
            "model": config.model,
            "headline": self.headline.measure,
            "score": _number(self.headline.value),
            "figures": [one.to_json() for one in self.rows],
            "slices": [one.to_json() for one in self.slices],
            "published_elsewhere": [published_json(one) for one in self.elsewhere],
            "num_asked": self.scored.num_asked,
            "num_scored": len(self.scored.examples),
            "notices": list(self.scored.notices),
            "ids_hash": self.ids_hash,
            "run": config.to_json(),
        }


def published_json(one: PublishedScore) -> dict[str, Any]:
    """A published figure with where it stands."""
    return {
        "value": one.value,
        "std": one.std,
        "measure": one.measure,
        "family": one.family,
        "size": one.size,
        "resolution": one.resolution,
        "split": one.split,
        "is_test_server": one.is_test_server,
        "source": one.source,
    }


Published = Callable[..., "Sequence[PublishedScore]"]


def make_report(
    scored: Scored, *, published: Published | None = None, num_resamples: int = 1000
) -> Report:
    """Figures with intervals, slices, and published figures of the same size and resolution.

    Args:
        scored: a run with its measures.
        published: (task, our_split=) -> figures; those of the package by default.
        num_resamples: of each interval; statistics too slow for that many get fewer, as rows say.
    """
    if published is None:
        from paligemma.tasks import published as package

        published = package.published
    identity = identity_of(scored.config)
    comparable = [
        one
        for one in published(scored.task, our_split=scored.config.split)
        if identity.matches(one) and not one.is_test_server
    ]
    servers = [
        one for one in published(scored.task) if one.is_test_server and identity.matches(one)
    ]
    rows, slices = _rows(scored, comparable, num_resamples)
    return Report(
        scored=scored,
        identity=identity,
        rows=tuple(rows),
        slices=tuple(slices),
        elsewhere=tuple(servers),
        ids_hash=ids_hash([one.id for one in scored.examples]),
    )


def identity_of(config: RunConfig) -> ModelIdentity:
    """Family, size and resolution: what the run noted, else what the model's name says."""
    from paligemma.weights.catalog import named_release

    found, noted = named_release(config.model), config.settings
    release, side_px = (None, None) if found is None else found
    return ModelIdentity(
        family=noted.get("family") or (release.family if release else None),
        size=noted.get("size") or (release.size.upper() if release else None),
        resolution_px=noted.get("image_size_px") or side_px,
    )


def ids_hash(ids: Sequence[str]) -> str:
    """Sixteen digits of SHA-256 over the ids in order, one a line."""
    return hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()[:16]


def _rows(
    scored: Scored, comparable: Sequence[PublishedScore], num_resamples: int
) -> tuple[list[Row], list[Row]]:
    """All figures; those over examples are resampled together, a figure over pairs by itself."""
    units, num = unit_of(scored.examples), len(scored.examples)
    groups = _groups(scored)
    over_examples = {one.name: one.statistic for one in scored.measures if one.num == num}
    few = {}
    for (by, group), measure in groups.items():
        name = json.dumps([by, group])
        over_examples[name], few[name] = measure.statistic, FEW_RESAMPLES
    name = scored.headline.name
    values = resampled_values(
        over_examples, units, num_resamples=num_resamples, most=few, headline=name
    )
    for one in scored.measures:
        if one.num != num:
            own = {one.name: one.statistic}
            values |= resampled_values(
                own, np.arange(one.num), num_resamples=num_resamples, headline=name
            )
    rows = [
        _row(one, values[one.name], published=tuple(p for p in comparable if p.measure == one.name))
        for one in scored.measures
    ]
    slices = [
        _row(measure, values[json.dumps([by, group])], by=by, group=group)
        for (by, group), measure in groups.items()
    ]
    return sorted(rows, key=lambda row: row.measure != name), slices


def _row(one: Measure, values: np.ndarray, **more: Any) -> Row:
    low, high = bounds(values)
    return Row(
        measure=one.name,
        value=one.value * one.scale,
        low=low * one.scale,
        high=high * one.scale,
        num=one.num if one.num_used is None else one.num_used,
        num_resamples=len(values),
        is_error=one.is_error,
        **more,
    )


def _groups(scored: Scored) -> dict[tuple[str, str], Measure]:
    """The headline limited to each slice, the largest slices of each name."""
    headline = scored.headline
    if headline.num != len(scored.examples):
        return {}
    given = {one.name for one in scored.measures}
    by_name: dict[str, list[tuple[str, np.ndarray]]] = {}
    for (by, group), members in slice_members(scored.examples).items():
        if f"{headline.name}/{group}" not in given:
            by_name.setdefault(by, []).append((group, members))
    groups = {}
    for by, found in by_name.items():
        largest = sorted(found, key=lambda pair: -int(pair[1].sum()))[:MAX_SLICE_VALUES]
        for group, members in found:
            if any(members is other for _, other in largest):
                groups[by, group] = limited(headline, headline.name, members)
    return groups


def to_table(report: Report) -> str:
    """The report for a terminal, headline first."""
    scored = report.scored
    config = scored.config
    sampling = ", ".join(f"{k} {v}" for k, v in config.sampling.items() if v is not None)
    lines = [
        f"{scored.task.title} ({config.split}) by {config.model or 'a model'}: "
        f"{len(scored.examples):,} of {scored.num_asked:,} examples"
        + (f" ({sampling})" if sampling else ""),
        "",
    ]
    name_width = max(9, *(len(_label(one)) for one in (*report.rows, *report.slices)))
    head = ("score", "95 % interval", "published", "difference", "examples")
    lines.append(
        f"{'':{name_width}} {head[0]:>8}  {head[1]:19}{head[2]:>9}  {head[3]:>10}  {head[4]:>8}"
    )
    for one in report.rows:
        lines.append(_line(one, name_width))
    by = ""
    for one in report.slices:
        if one.by != by:
            by = one.by
            lines += ["", f"{one.measure} by {by}"]
        lines.append(_line(one, name_width))
    lines += ["", *notes(report)]
    return "\n".join(lines)


def notes(report: Report) -> list[str]:
    """What has to be said beside the figures: sources, what is not comparable, faults."""
    lines = []
    cited = dict.fromkeys(one for row in report.rows for one in row.published)
    for one in cited:
        spread = "" if one.std is None else f" +- {one.std:g} over runs"
        lines.append(
            f"published {one.measure} {one.value:g}{spread}: {report.identity}, fine-tuned on this "
            f"task, {one.split}, {one.source}"
        )
    if not cited and (report.elsewhere or report.scored.task.published):
        lines.append(f"nothing comparable was published for {report.identity}")
    for one in report.elsewhere:
        lines.append(
            f"not comparable, from the test server: {one.measure} {one.value:g} ({one.split}, "
            f"{one.source})"
        )
    return [*lines, *report.scored.notices]


def _label(one: Row) -> str:
    return f"  {one.group or '(none)'}" if one.by else one.measure


def _line(one: Row, name_width: int) -> str:
    interval = "" if math.isnan(one.low) else f"[{one.low:.2f}, {one.high:.2f}]"
    value = "-" if math.isnan(one.value) else f"{one.value:.2f}"
    published = f"{one.published[0].value:.2f}" if one.published else "-"
    difference = "-" if one.difference is None else f"{one.difference:+.2f}"
    return (
        f"{_label(one):{name_width}} {value:>8}  {interval:19}{published:>9}  {difference:>10}"
        f"  {one.num:>8,}"
    )


def _number(value: float) -> float | None:
    return round(float(value), 5) if math.isfinite(value) else None


def worst(scored: Scored, scores: ExampleScores | None, num: int) -> list[int]:
    """Positions of the worst examples: of equally bad ones, those the model was surest of.

    An answer that is wrong and sure says more than one that is wrong and unsure.
    """
    if scores is None:
        return []
    badness = scores.values if scores.is_error else -scores.values
    sure = np.array([confidence(one) for one in scored.predictions])
    usable = np.flatnonzero(np.isfinite(badness))
    order = np.lexsort((usable, -sure[usable], -badness[usable]))
    return [int(usable[k]) for k in order[:num]]


def confidence(prediction: Prediction) -> float:
    """The largest of an answer's boxes, else the probability of its words; 0 where unknown."""
    scores = [one.score for one in prediction.objects if one.score is not None]
    if scores:
        return max(scores)
    if prediction.logprob is not None:
        return float(math.exp(min(prediction.logprob, 0.0)))
    return 0.0
