"""What labelling so many pictures will take: parts over workers that straggle and are lost."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from paligemma.bench.batch_costs import RowCost
from paligemma.errors import ConfigError

# Parts that are simulated; of more, their first, and the rest at the same rate.
_MAX_PARTS = 50_000
_HOUR = 3600.0
# Share of the attempts at a part that must succeed for a plan to have a sense.
_LEAST_ENDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The workers of a labelling, and how they fail.

    Attributes:
        num_workers: processes with a model each.
        part_rows: rows of a part.
        stragglers: share of the parts that take `slowdown` times as long.
        slowdown: how much longer.
        hours_to_loss: mean hours until a machine is lost, and another one takes its place; infinite
            where none is.
        workers_each: workers of a machine, all of which are lost with it.
    """

    num_workers: int
    part_rows: int
    stragglers: float = 0.01
    slowdown: float = 4.0
    hours_to_loss: float = 1000.0
    workers_each: int = 1

    def __post_init__(self) -> None:
        wrong = self.num_workers < 1 or self.part_rows < 1 or self.workers_each < 1
        wrong |= not 0 <= self.stragglers <= 1 or not 1 <= self.slowdown < math.inf
        if wrong or not self.hours_to_loss > 0:  # NaN too
            raise ConfigError(
                "a plan needs workers, rows and hours above 0, a share of stragglers in [0, 1] and "
                f"a slowdown of 1 or more, got {self}"
            )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a labelling will take.

    Attributes:
        hours: from the command to the last row.
        ideal_hours: the same without stragglers and lost machines.
        worker_hours: of all workers, for the bill.
        num_parts: files of labels.
        num_lost: machines that are lost on the way, on average.
        rows_again: rows that are asked again for it, on average.
    """

    hours: float
    ideal_hours: float
    worker_hours: float
    num_parts: int
    num_lost: float
    rows_again: float


def forecast(num_rows: int, cost: RowCost, fleet: Fleet, seed: int = 0) -> Forecast:
    """Simulate a labelling, part by part, from a seed.

    Raises:
        ConfigError: no row, or machines that are lost before their parts end.
    """
    if num_rows < 1:
        raise ConfigError(f"a plan needs a row, got {num_rows}")
    _require_ends(cost, fleet)
    num_parts = math.ceil(num_rows / fleet.part_rows)
    num_simulated = min(num_parts, max(_MAX_PARTS, 20 * fleet.num_workers))
    draw = random.Random(seed)
    # So that the mean of the drawn seconds is the measured one.
    shift = -(cost.spread**2) / 2
    left = [fleet.part_rows] * (num_parts - 1) + [num_rows - (num_parts - 1) * fleet.part_rows]
    sizes = left[-num_simulated:]
    free = [(cost.start, worker) for worker in range(fleet.num_workers)]
    heapq.heapify(free)
    num_lost, rows_again, busy, end = 0.0, 0.0, 0.0, cost.start
    mean_hours = fleet.hours_to_loss
    for rows in sizes:
        at, worker = heapq.heappop(free)
        while True:
            seconds = rows * cost.seconds * math.exp(shift + cost.spread * draw.gauss(0, 1))
            if draw.random() < fleet.stragglers:
                seconds *= fleet.slowdown
            # Losses are rare: what is expected of them is counted, and not those that were drawn.
            share, lost = _expected_loss(seconds / (mean_hours * _HOUR))
            num_lost += share / fleet.workers_each
            rows_again += rows * lost
            lives = draw.expovariate(1) * mean_hours * _HOUR
            if lives >= seconds:
                break
            # Lost with what it had done of the part; another begins anew.
            at += lives + cost.start
            busy += lives + cost.start
        busy += seconds
        at += seconds
        end = max(end, at)
        heapq.heappush(free, (at, worker))
    whole = num_parts / len(sizes)
    computing = (end - cost.start) * whole
    per_worker = math.ceil(num_parts / fleet.num_workers) * fleet.part_rows
    ideal = cost.start + min(per_worker, num_rows) * cost.seconds
    hours = (cost.start + computing) / _HOUR
    return Forecast(
        hours=hours,
        ideal_hours=ideal / _HOUR,
        worker_hours=hours * fleet.num_workers,
        num_parts=num_parts,
        num_lost=num_lost * whole,
        rows_again=rows_again * whole,
    )


def _expected_loss(lives: float) -> tuple[float, float]:
    """How likely a part loses its machine, and the share of it that is lost on average.

    Args:
        lives: length of the part, in mean lives of a machine, which end at random.
    """
    if not lives:
        return 0.0, 0.0
    is_lost = -math.expm1(-lives)
    return is_lost, is_lost / lives - math.exp(-lives)


def _require_ends(cost: RowCost, fleet: Fleet) -> None:
    """Check that a part ends before its machine is lost, once in twenty times at least."""
    seconds = fleet.part_rows * cost.seconds
    lost = seconds / (fleet.hours_to_loss * _HOUR)
    slow = fleet.stragglers * math.exp(-lost * fleet.slowdown)
    if (1 - fleet.stragglers) * math.exp(-lost) + slow < _LEAST_ENDS:
        raise ConfigError(
            f"a part of {fleet.part_rows:,} rows takes {seconds / _HOUR:.4g} hours, and a machine "
            f"is lost every {fleet.hours_to_loss:g}, so hardly a part would end; take smaller "
            "--part-rows"
        )


def forecast_lines(
    num_rows: int,
    cost: RowCost,
    fleet: Fleet,
    found: Forecast,
    *,
    rate: float | None = None,
    picture_bytes: float | None = None,
) -> Iterator[str]:
    """A forecast as lines of text.

    Args:
        rate: money a worker hour; None leaves money out.
        picture_bytes: of a picture as it is stored.
    """
    steps = ", ".join(f"{name} {value * 1000:.3g} ms" for name, value in cost.parts.items())
    yield f"figures          {cost.source}"
    yield f"a row            {cost.seconds * 1000:.4g} ms of a worker ({steps})"
    yield f"rows             {num_rows:,} in {found.num_parts:,} parts of {fleet.part_rows:,}"
    yield f"workers          {fleet.num_workers:,}, each ready after {cost.start:.0f} s"
    less = 1 - found.ideal_hours / found.hours
    yield (
        f"hours            {_number(found.hours)} ({_number(found.ideal_hours)} without stragglers "
        f"and lost machines, {less:.1%} less)"
    )
    yield f"worker hours     {_number(found.worker_hours)}"
    if rate is not None:
        yield f"money            {found.worker_hours * rate:,.2f} at {rate:g} a worker hour"
    yield (
        f"written          {_size(cost.label_bytes * num_rows)} "
        f"({cost.label_bytes:.0f} bytes a row)"
    )
    if picture_bytes is not None:
        yield f"read             {_size(picture_bytes * num_rows)} of pictures"
    again = found.rows_again / num_rows
    yield (
        f"failure budget   {found.num_lost:,.1f} machines lost, one in {fleet.hours_to_loss:g} "
        f"hours; {found.rows_again:,.0f} rows asked again ({again:.3%}), at most "
        f"{fleet.part_rows * fleet.num_workers:,} at a time"
    )
    if cost.quarantined is not None:
        yield f"quarantined      {cost.quarantined:.2%} of the rows, as in the pilot"


def _number(value: float) -> str:
    """Four digits, and never an exponent where there are more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _size(num_bytes: float) -> str:
    for name in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or name == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:,.1f} {name}"
