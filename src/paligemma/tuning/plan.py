"""What a fine-tuning will need, before anything is downloaded or run: memory, cards, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from paligemma.config import PaliGemmaConfig, named_release, release_config
from paligemma.errors import ConfigError
from paligemma.tuning.footprint import Footprint, Rows, footprint
from paligemma.tuning.recipe import COMPUTE, Recipe, RecipeKeywords
from paligemma.tuning.setup import PARALLEL, recipe_of
from paligemma.weights.catalog import resolve
from paligemma.weights.load import OpenCheckpoint

# Shares of a card's memory that torch, its kernels and fragments take; ours, from an H100 run.
_HEADROOM = 0.08
# Share of a card's peak that training is assumed to reach; the original reports 0.55 on a TPU.
UTILISATION = 0.4
_GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU, with its maker's figures.

    Attributes:
        memory: bytes.
        flops: dense bfloat16 operations a second; of a T4 float16.
    """

    memory: int
    flops: float


CARDS: Mapping[str, Card] = {
    "t4-16": Card(memory=16 * _GB, flops=65e12),
    "4090-24": Card(memory=24 * _GB, flops=165e12),
    "l4-24": Card(memory=24 * _GB, flops=121e12),
    "l40s-48": Card(memory=48 * _GB, flops=362e12),
    "a100-40": Card(memory=40 * _GB, flops=312e12),
    "a100-80": Card(memory=80 * _GB, flops=312e12),
    "h100-80": Card(memory=80 * _GB, flops=989e12),
    "h200-141": Card(memory=141 * _GB, flops=989e12),
    "b200-180": Card(memory=180 * _GB, flops=2250e12),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one process holds at its fullest, in bytes, and what the run computes.

    Attributes:
        footprint: one update of `rows` without sharding.
        rows: the rows that a process computes at once.
        processes: number of processes.
        sharded: whether parameters, gradients and state are divided among them.
        weights: parameters of a process.
        gradients: gradients of a process.
        state: state of the update rule of a process.
        working: activations, logits, temporary sums; sharded, also the blocks that are gathered.
        saved: what a checkpoint holds of a process, copied to the host's memory to be written.
        steps: updates of the run; None where the number of rows is not known.
        flops_a_step: operations of one update of the whole batch.
    """

    footprint: Footprint
    rows: Rows
    processes: int
    sharded: bool
    weights: int
    gradients: int
    state: int
    working: int
    saved: int
    steps: int | None
    flops_a_step: float

    @property
    def total(self) -> int:
        """Bytes of one process."""
        return self.weights + self.gradients + self.state + self.working

    def fits(self, card: Card) -> bool:
        """Whether a process fits into the memory of a card, with room for torch itself."""
        return self.total <= (1 - _HEADROOM) * card.memory

    def hours(self, card: Card) -> float | None:
        """Hours of the run on as many cards as processes, at the assumed utilisation."""
        if self.steps is None:
            return None
        return self.steps * self.flops_a_step / (card.flops * UTILISATION * self.processes) / 3600


def config_of(model: str) -> PaliGemmaConfig:
    """The sizes of a model; those of a release are known without its files.

    Raises:
        PaliGemmaError: no such model, or a file that is not one.
    """
    released = named_release(model)
    if released is not None:
        release, side = released
        return release_config(release.text, side)
    checkpoint = resolve(model)
    checkpoint.require_plain("a fine-tuning")
    with OpenCheckpoint(checkpoint) as opened:
        return opened.config


def plan(
    config: PaliGemmaConfig,
    recipe: Recipe,
    *,
    num_rows: int | None = None,
    num_text: int = 128,
    num_answer: int = 32,
    processes: int = 1,
    parallel: str | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
    base_dtype: torch.dtype = torch.bfloat16,
) -> Plan:
    """Measure what a fine-tuning needs, on a model without storage.

    Args:
        num_rows: rows of the data, which the number of updates follows from.
        num_text: tokens of a row's prompt and answer.
        num_answer: supervised tokens among them.
        processes: as torchrun starts them, each with a card of its own.
        parallel: one of `PARALLEL`; by default adapters are replicated and whole models sharded.
        compute_dtype: dtype of the products.
        base_dtype: dtype of the frozen weights under an adapter.

    Raises:
        ConfigError: a number is out of its range.
    """
    if processes < 1 or not 1 <= num_answer <= num_text:
        raise ConfigError(
            "a plan needs one process or more, and answers that are no longer than their rows, "
            f"got {processes} processes and {num_answer} of {num_text} tokens"
        )
    if parallel not in (None, *PARALLEL):
        raise ConfigError(f"parallel must be one of {', '.join(PARALLEL)}, got {parallel!r}")
    sharded = processes > 1 and (parallel or ("replicate" if recipe.lora else "shard")) == "shard"
    share = -(-recipe.batch_size // processes)
    rows = Rows(
        count=min(share, recipe.micro_size or share), num_text=num_text, num_answer=num_answer
    )
    found = footprint(config, recipe, rows, base_dtype=base_dtype, compute_dtype=compute_dtype)
    divisor = processes if sharded else 1
    return Plan(
        footprint=found,
        rows=rows,
        processes=processes,
        sharded=sharded,
        weights=found.weights // divisor,
        gradients=found.gradients // divisor,
        state=found.state // divisor,
        working=found.working + (_gathered(found) if sharded else 0),
        saved=((found.gradients if recipe.lora else found.weights) + found.state) // divisor,
        steps=None
        if num_rows is None and recipe.steps is None
        else recipe.num_steps(num_rows or 1),
        flops_a_step=found.flops * recipe.batch_size / rows.count,
    )


def _gathered(found: Footprint) -> int:
    """What a process of a divided model holds whole at once: table and blocks, in float32.

    The factors are measured, with two gloo processes and three shapes of models.
    """
    return round(1.5 * found.table + 3 * found.block)


def cards_needed(single: Plan, card: Card, most: int = 64) -> int | None:
    """The fewest cards among which a whole model can be divided so that each share fits.

    Args:
        single: plan of one process that computes as few rows at once as it may.
        most: number of cards that is not exceeded.

    Returns:
        1 or a power of two; None where more than `most` would be needed.
    """
    count = 1
    while count <= most:
        kept = (single.weights + single.gradients + single.state) // count
        gathered = _gathered(single.footprint) if count > 1 else 0
        if kept + single.working + gathered <= (1 - _HEADROOM) * card.memory:
            return count
        count *= 2
    return None


def rows_that_fit(first: Plan, second: Plan, card: Card) -> int:
    """About the most rows that fit into a card at once; 0 if not even one does.

    With some rows, working memory grows by the same amount with every further one, so two plans
    that differ in the rows that are computed at once give it.
    """
    slope = max(1.0, (second.total - first.total) / (second.rows.count - first.rows.count))
    room = (1 - _HEADROOM) * card.memory - first.total
    return max(0, first.rows.count + int(room // slope))


def plan_lines(
    model: str,
    stated: RecipeKeywords,
    *,
    transfer: str | None = None,
    card: str | None = None,
    **options: Any,
) -> Iterator[str]:
    """A plan as lines of text: parts, memory of a process, and what each card makes of it.

    Args:
        model: name, folder or file.
        stated: fields of the recipe.
        transfer: published transfer that gives the values which are not stated.
        card: one of `CARDS`; all by default.
        options: as of `plan`.

    Raises:
        ConfigError: an option is unknown or out of its range.
    """
    if card is not None and card not in CARDS:
        raise ConfigError(f"a card must be one of {', '.join(CARDS)}, got {card!r}")
    config = config_of(model)
    recipe = recipe_of(stated, transfer, config.vision.image_size_px)
    options["compute_dtype"] = COMPUTE[recipe.compute or "bfloat16"]
    found = plan(config, recipe, **options)
    yield f"{'part':24} {'state':10} {'parameters':>14}  learning rate"
    for row in found.footprint.parts:
        rate = f"{row['lr']:.3g}" if row["lr"] else "-"
        yield f"{row['part']:24} {row['state']:10} {row['parameters']:14,}  {rate}"
    owner = f"each of {found.processes} processes" if found.processes > 1 else "one process"
    yield ""
    yield f"memory of {owner}" + (", sharded" if found.sharded else "")
    for name, size in (
        ("weights", found.weights),
        ("gradients", found.gradients),
        ("state of the update rule", found.state),
        (f"working memory, rows at once: {found.rows.count}", found.working),
        ("together", found.total),
        ("copy in the host's memory, for --save", found.saved),
    ):
        yield f"  {name:40} {size / _GB:8.2f} GB"
    work = f"{found.flops_a_step / 1e12:,.1f} TFLOP an update of {recipe.batch_size} rows"
    yield ""
    yield work if found.steps is None else f"{found.steps:,} updates, {work}"
    yield ""
    yield f"{'card':10} {'fits':5} {'rows that fit':>14}  {'hours':>8}"
    other = max(16, 4 * found.rows.count)
    more = plan(
        config, replace(recipe, batch_size=other * found.processes, micro_size=other), **options
    )
    for name in CARDS if card is None else (card,):
        rows = rows_that_fit(found, more, CARDS[name])
        hours = found.hours(CARDS[name]) if rows else None
        yield (
            f"{name:10} {'yes' if found.fits(CARDS[name]) else 'no':5} {rows or '-':>14}  "
            + ("       -" if hours is None else f"{hours:8.2f}")
        )
    yield ""
    yield (
        f"{_HEADROOM:.0%} of a card is left to torch; hours assume {UTILISATION:.0%} of its "
        "peak. Rows that fit are those computed at once (--micro-size)."
    )
