"""What a run scored beside what was published: rows for the terminal, for JSON and for the page."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paligemma.config import named_release
from paligemma.eval.figures import Figure, figures_of, published_json, rounded
from paligemma.eval.scored import Scored
from paligemma.jobs.run_folder import RunConfig
from paligemma.metrics.interval import NUM_RESAMPLES
from paligemma.tasks import published as package
from paligemma.tasks.published import PublishedScore

SCORES = "scores.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Properties of a model that published figures are comparable by.

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything that a page or a table shows of a run.

    Attributes:
        slices: the headline by each slice of the examples.
        elsewhere: published figures of test servers, which are not comparable.
        ids_hash: hash of the scored ids in order; equal hashes mean the same examples.
    """

    scored: Scored
    identity: ModelIdentity
    figures: tuple[Figure, ...]
    slices: tuple[Figure, ...] = ()
    elsewhere: tuple[PublishedScore, ...] = ()
    ids_hash: str = ""

    @property
    def headline(self) -> Figure:
        name = self.scored.headline.name
        return next(one for one in self.figures if one.measure == name)

    @property
    def extent(self) -> str:
        """Number of examples, and how they were chosen, in words."""
        scored = self.scored
        chosen = [f"{k} {v}" for k, v in scored.config.sampling.items() if v is not None]
        words = f"{len(scored.examples):,} of {scored.num_asked:,} examples"
        return f"{words} ({', '.join(chosen)})" if chosen else words

    def to_json(self) -> dict[str, Any]:
        """The run, its figures with intervals, what was published, and how to repeat it."""
        config = self.scored.config
        return {
            "format": FORMAT,
            "task": config.task,
            "split": config.split,
            "model": config.model,
            "headline": self.headline.measure,
            "score": rounded(self.headline.value),
            "figures": [one.to_json() for one in self.figures],
            "slices": [one.to_json() for one in self.slices],
            "published_elsewhere": [published_json(one) for one in self.elsewhere],
            "num_asked": self.scored.num_asked,
            "num_scored": len(self.scored.examples),
            "notices": list(self.scored.notices),
            "failed": [
                {"id": one.id, "error": one.error}
                for one in self.scored.predictions
                if one.error is not None
            ],
            "ids_hash": self.ids_hash,
            "run": config.to_json(),
        }


Published = Callable[..., Sequence[PublishedScore]]


def make_report(
    scored: Scored,
    *,
    published: Published | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Report:
    """Figures with intervals, slices, and published figures of the same size and resolution.

    Args:
        published: (task, our_split=) -> figures; None takes those of the package.
        num_resamples: number for each interval; statistics too slow for that many get fewer, as
            each figure states.
    """
    published = published or package.published
    identity = identity_of(scored.config)
    comparable = [
        one
        for one in published(scored.task, our_split=scored.config.split)
        if identity.matches(one) and not one.is_test_server
    ]
    servers = [
        one for one in published(scored.task) if one.is_test_server and identity.matches(one)
    ]
    figures, slices = figures_of(scored, comparable, num_resamples)
    return Report(
        scored=scored,
        identity=identity,
        figures=tuple(figures),
        slices=tuple(slices),
        elsewhere=tuple(servers),
        ids_hash=ids_hash([one.id for one in scored.examples]),
    )


def identity_of(config: RunConfig) -> ModelIdentity:
    """Family, size and resolution, which the run noted or the model's name states."""
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


def to_table(report: Report) -> str:
    """The report for a terminal, headline first."""
    config = report.scored.config
    title = report.scored.task.title
    lines = [f"{title} ({config.split}) by {config.model or 'a model'}: {report.extent}", ""]
    name_width = max(9, *(len(_label(one)) for one in (*report.figures, *report.slices)))
    head = ("score", "95 % interval", "published", "difference", "examples")
    lines.append(
        f"{'':{name_width}} {head[0]:>8}  {head[1]:19}{head[2]:>9}  {head[3]:>10}  {head[4]:>8}"
    )
    for one in report.figures:
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
    """Sentences beside the figures: sources, what is not comparable, faults of the answers."""
    lines = []
    cited = dict.fromkeys(one for figure in report.figures for one in figure.published)
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
    if any(figure.measure == "unknown" for figure in report.figures):
        lines.append(
            "unknown: the share of boxes that name no class of the benchmark, 0.00 at best; they "
            "count in no other figure"
        )
    return [*lines, *report.scored.notices]


def _label(one: Figure) -> str:
    return f"  {one.group or '(none)'}" if one.by else one.measure


def _line(one: Figure, name_width: int) -> str:
    interval = "" if math.isnan(one.low) else f"[{one.low:.2f}, {one.high:.2f}]"
    value = "-" if math.isnan(one.value) else f"{one.value:.2f}"
    published = f"{one.published[0].value:.2f}" if one.published else "-"
    difference = "-" if one.difference is None else f"{one.difference:+.2f}"
    return (
        f"{_label(one):{name_width}} {value:>8}  {interval:19}{published:>9}  {difference:>10}"
        f"  {one.num:>8,}"
    )
