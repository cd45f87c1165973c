"""Two runs of one benchmark, example by example: which is better, and how sure that is.

Source: the paired bootstrap of Koehn, Statistical Significance Tests for Machine Translation
Evaluation, EMNLP 2004, section 4.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paligemma.errors import ConfigError, DataError
from paligemma.eval.example_scores import ExampleScores, example_scores
from paligemma.eval.figures import rounded
from paligemma.eval.resampling import resampled_values, unit_of
from paligemma.eval.scored import Scored, only
from paligemma.metrics.interval import NUM_RESAMPLES, bounds
from paligemma.metrics.measure import Measure, Statistic

# Examples in JSON: so many gains, and so many losses.
_NUM_LARGEST = 20
# Scores closer than this are equal; both come from the same arithmetic.
_TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of both runs, in the unit of published tables.

    Attributes:
        low, high: bounds of the 95 % interval of second minus first; NaN where there is none.
        sign_share: resamples in which the difference has the sign it has over all examples; those
            without a difference count half. NaN without resamples.
    """

    measure: str
    first: float
    second: float
    low: float
    high: float
    sign_share: float
    num: int
    num_resamples: int
    is_error: bool = False

    @property
    def value(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    @property
    def is_better(self) -> bool:
        """Whether the second run is the better one."""
        return self.value < 0 if self.is_error else self.value > 0

    def to_json(self) -> dict[str, Any]:
        """Numbers as tables print them; null where undefined."""
        row: dict[str, Any] = {"measure": self.measure}
        row |= {name: rounded(getattr(self, name)) for name in ("first", "second")}
        row["difference"] = rounded(self.value)
        row |= {name: rounded(getattr(self, name)) for name in ("low", "high", "sign_share")}
        kept = ("is_clear", "is_error", "num", "num_resamples")
        return row | {name: getattr(self, name) for name in kept}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two runs on their common examples.

    Attributes:
        first, second: scored on the common examples, in one order.
        differences: differences of every measure that both have, the headline first.
        gains: float64[N], what the second run gains on each example, positive is better; None
            where the benchmark gives single examples no score.
        scores: scores of both runs' single examples, see `example_scores`.
        num_only_first, num_only_second: examples that one run alone has answered; left out.
        notices: sentences on how the runs differ beside the model.
    """

    first: Scored
    second: Scored
    differences: tuple[Difference, ...]
    gains: np.ndarray | None = field(repr=False)
    scores: tuple[ExampleScores, ExampleScores] | None = field(repr=False)
    num_only_first: int
    num_only_second: int
    notices: tuple[str, ...] = ()

    @property
    def num(self) -> int:
        """Common examples."""
        return len(self.first.examples)

    @property
    def counts(self) -> dict[str, int]:
        """Examples that the second run won, lost and tied; empty without single scores."""
        if self.gains is None:
            return {}
        known = self.gains[np.isfinite(self.gains)]
        return {
            "won": int((known > _TIE).sum()),
            "lost": int((known < -_TIE).sum()),
            "tied": int((np.abs(known) <= _TIE).sum()),
        }

    @property
    def notes(self) -> list[str]:
        """Sentences beside the figures: what is left out, and how the runs differ."""
        only = ((self.num_only_first, "first"), (self.num_only_second, "second"))
        left_out = [
            f"{number:,} examples that only the {name} run answered are left out"
            for number, name in only
            if number
        ]
        return [*left_out, *self.notices]

    def largest(self, num: int, *, won: bool) -> list[int]:
        """Positions of the examples with the largest gains, or losses; ties are left out."""
        if self.gains is None:
            return []
        signed = np.where(np.isfinite(self.gains), self.gains if won else -self.gains, -np.inf)
        order = np.argsort(-signed, kind="stable")
        return [int(k) for k in order[:num] if signed[k] > _TIE]

    def to_json(self) -> dict[str, Any]:
        """Differences, counts, and the examples with the largest gains and losses."""
        first, second = self.first.config, self.second.config
        gains = np.zeros(self.num) if self.gains is None else self.gains
        rows = [
            {
                "id": self.first.examples[k].id,
                "gain": round(float(gains[k]), 5),
                "first": self.first.predictions[k].text,
                "second": self.second.predictions[k].text,
            }
            for won in (True, False)
            for k in self.largest(_NUM_LARGEST, won=won)
        ]
        return {
            "task": first.task,
            "split": first.split,
            "first": {"model": first.model, "config_hash": first.key},
            "second": {"model": second.model, "config_hash": second.key},
            "num_common": self.num,
            "num_only_first": self.num_only_first,
            "num_only_second": self.num_only_second,
            "differences": [one.to_json() for one in self.differences],
            **({"examples": self.counts} if self.counts else {}),
            "largest": rows,
            "notices": list(self.notices),
        }


def compare(
    first: Scored, second: Scored, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare two runs on the examples that both have answered.

    Args:
        num_resamples: number of resamples of the paired bootstrap; examples of one unit are drawn
            together.

    Raises:
        DataError: runs of different tasks or splits, of different questions under one id, or
            without a common example.
        ConfigError: a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, got {seed}; choose another")
    common, notices = _common(first, second)
    num_only = (len(first.examples) - len(common), len(second.examples) - len(common))
    first = only(first, common) if num_only[0] else first
    second = only(second, common)
    other = {one.name: one for one in second.measures}
    headline = first.headline.name
    pairs = sorted(
        ((one, other[one.name]) for one in first.measures if one.name in other),
        key=lambda pair: pair[0].name != headline,
    )
    values = resampled_values(
        {one.name: (_difference(one, two), one.num) for one, two in pairs if one.num == two.num},
        unit_of(first.examples),
        num_resamples=num_resamples,
        seed=seed,
        headline=headline,
    )
    ours, theirs = example_scores(first), example_scores(second)
    gains = scores = None
    if ours is not None and theirs is not None:
        gains, scores = theirs.values - ours.values, (ours, theirs)
        gains = -gains if ours.is_error else gains
    return Comparison(
        first=first,
        second=second,
        differences=tuple(_row(one, two, values.get(one.name, np.array([]))) for one, two in pairs),
        gains=gains,
        scores=scores,
        num_only_first=num_only[0],
        num_only_second=num_only[1],
        notices=notices,
    )


def _common(first: Scored, second: Scored) -> tuple[list[str], tuple[str, ...]]:
    """Ids of the common examples, and sentences on how the two runs differ."""
    ours, theirs = first.config, second.config
    if (ours.task, ours.split) != (theirs.task, theirs.split):
        raise DataError(
            "runs are compared on one task and split, got "
            f"{ours.task} {ours.split} and {theirs.task} {theirs.split}; name two runs of one"
        )
    if dict(ours.rules) != dict(theirs.rules):
        raise DataError(
            f"runs are compared by one way of scoring, got the rules {dict(ours.rules)} and "
            f"{dict(theirs.rules)}; name those for both with --rule"
        )
    in_second = {one.id: one for one in second.examples}
    common = [one for one in first.examples if one.id in in_second]
    if not common:
        raise DataError(
            f"runs are compared on common examples, but of {len(first.examples):,} and "
            f"{len(second.examples):,} none has the same id; use one seed and limit for both"
        )
    changed = [one.id for one in common if one.references != in_second[one.id].references]
    if changed:
        raise DataError(
            f"an id must mean one example in both runs, but {len(changed):,} of {len(common):,} "
            f"have other references, such as {changed[0]!r}; run both on the same files"
        )
    notices: tuple[str, ...] = ()
    if any(one.prefix != in_second[one.id].prefix for one in common):
        notices = ("the two runs were asked in different words",)
    return [one.id for one in common], notices


def _difference(first: Measure, second: Measure) -> Statistic:
    return lambda weights: second.statistic(weights) - first.statistic(weights)


def _row(first: Measure, second: Measure, values: np.ndarray) -> Difference:
    low, high = bounds(values)
    known = values[np.isfinite(values)]
    value = second.value - first.value
    share = float("nan")
    if len(known):
        same = np.sign(known) == np.sign(value)
        share = float(np.where(np.abs(known) <= _TIE, 0.5, same).mean())
        share = 0.5 if abs(value) <= _TIE else share
    return Difference(
        measure=first.name,
        first=first.value * first.scale,
        second=second.value * second.scale,
        low=low * first.scale,
        high=high * first.scale,
        sign_share=share,
        num=first.num if first.num_used is None else first.num_used,
        num_resamples=len(values),
        is_error=first.is_error,
    )


def to_table(found: Comparison) -> str:
    """The comparison for a terminal."""
    first, second = found.first.config, found.second.config
    lines = [
        f"{found.first.task.title} ({first.split}), {found.num:,} common examples",
        f"  first:  {first.model} ({first.key})",
        f"  second: {second.model} ({second.key})",
        "",
    ]
    width = max(9, *(len(one.measure) for one in found.differences))
    lines.append(
        f"{'':{width}} {'first':>8} {'second':>8} {'difference':>11}  {'95 % interval':17} "
        "same sign"
    )
    for one in found.differences:
        interval = "" if math.isnan(one.low) else f"[{one.low:+.2f}, {one.high:+.2f}]"
        lines.append(
            f"{one.measure:{width}} {one.first:8.2f} {one.second:8.2f} {one.value:+11.2f}"
            f"  {interval:17} {sign_words(one):>9}"
        )
    lines += ["", verdict(found)]
    if found.counts:
        counts = ", ".join(f"{name} {number:,}" for name, number in found.counts.items())
        lines.append(f"example by example the second {counts}")
    return "\n".join([*lines, *found.notes])


def sign_words(one: Difference) -> str:
    """The share of resamples with the sign of a difference; nothing where it has none."""
    if math.isnan(one.sign_share) or abs(one.value) <= _TIE:
        return ""
    return f"{100 * one.sign_share:.1f} %"


def verdict(found: Comparison) -> str:
    """One sentence on the headline."""
    one = found.differences[0]
    if math.isnan(one.low):
        return f"{one.measure} differs by {one.value:+.2f}; it is too slow to be resampled"
    better = "second" if one.is_better else "first"
    if one.is_clear:
        return f"the {better} run is better in {one.measure}: the interval leaves zero out"
    return (
        f"the runs cannot be told apart in {one.measure}: the interval of the difference holds zero"
    )
