"""The options with which the training of a row of the papers fits into cards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from paligemma.tuning.plan import Card, Plan, cards_needed, plan, rows_that_fit
from paligemma.tuning.reproduce import rows


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a training fits; the updates are the published ones in any case.

    Attributes:
        single: plan of one process that computes one row at once.
        micro_size: rows that are computed at once; None is the whole batch.
        checkpointing: whether activations are computed twice.
        processes: number of cards; None where too many would be needed.
    """

    single: Plan
    micro_size: int | None
    checkpointing: bool
    processes: int | None

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the training, the number of processes apart."""
        rows = ("--micro-size", str(self.micro_size)) if self.micro_size else ()
        return (*rows, *(("--checkpointing",) if self.checkpointing else ()))


@cache
def fit(name: str, card: Card) -> Fit | None:
    """The options that cost the least time for a row; None where nothing is trained.

    Where a row fits without checkpointing, half of the rows that should fit are computed at once,
    rounded down to a power of two, because plans are estimates.
    """
    row = rows()[name]
    recipe, trained_on = row.recipe(), row.trained_on
    if recipe is None or trained_on is None:
        return None
    num_text = trained_on.asking.text_len

    def planned(num: int, *, checkpointing: bool) -> Plan:
        one = replace(recipe, batch_size=num, micro_size=num, checkpointing=checkpointing)
        return plan(row.config, one, num_text=num_text, num_answer=max(1, num_text // 4))

    single = planned(1, checkpointing=False)
    if single.fits(card):
        most = rows_that_fit(single, planned(2, checkpointing=False), card)
        half = 1 << (max(1, most // 2).bit_length() - 1)
        micro_size = None if most >= 2 * recipe.batch_size else half
        return Fit(single=single, micro_size=micro_size, checkpointing=False, processes=1)
    single = planned(1, checkpointing=True)
    return Fit(
        single=single, micro_size=1, checkpointing=True, processes=cards_needed(single, card)
    )
