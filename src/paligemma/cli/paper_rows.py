"""A row of the papers in lines for people and as JSON: figures, needs, cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paligemma.tuning.plan import Card
    from paligemma.tuning.reproduce import Row

_GB = 10**9
_MAX_FIGURES = 4


def overview(known: Sequence[Row], card: str, gpu: Card, rate: float | None) -> list[str]:
    """A line a row: name, published figures, and what the training costs."""
    width = max(len(row.name) for row in known)
    lines = [f"{'row':{width}}  {card + ' hours':>16}  published"]
    for row in known:
        lines.append(f"{row.name:{width}}  {_cost(row, gpu, rate):>16}  {_figures(row)}")
    return [
        *lines,
        "",
        f"{len(known)} rows. Hours are of the training on one card, at the same share of its peak "
        "as in `paligemma plan`; - where nothing is trained, ? where the papers state no number "
        "of rows.",
        "what one needs: paligemma reproduce NAME --dry-run",
    ]


def described(row: Row, card: str, gpu: Card, rate: float | None) -> Iterator[str]:
    """What a row is, and what it needs, in lines."""
    yield f"{row.task.title} with {row.model}"
    yield ""
    for one in dict.fromkeys(
        f"{one.measure} {one.value:g}{f' +- {one.std:g}' if one.std else ''}, {one.split}"
        f"{', from the test server' if one.is_test_server else ''} ({one.source})"
        for one in row.figures
    ):
        yield f"published  {one}"
    recipe = row.recipe()
    yield f"model      {row.model}, gated: accept its licence on the hub first"
    if recipe is None or row.trained_on is None:
        yield "training   none: the released model is measured"
        return
    followed = f"transfer {row.transfer}" if row.transfer else "the recipe for any task"
    yield (
        f"training   {followed}: batches of {recipe.batch_size}, learning rate {recipe.lr:g}, "
        + (f"{recipe.steps:,} updates" if recipe.steps else f"{recipe.epochs:g} epochs")
    )
    if row.transfer is None:
        yield "           the published values of this training are not known"
    number = row.num_training_rows()
    yield f"rows       {f'{number:,}' if number else 'no number published'}"
    yield from _memory(row, card, gpu)
    cost = _cost(row, gpu, rate)
    yield f"cost       {'depends on the rows' if cost == '?' else f'{cost} hours of one {card}'}"


def _memory(row: Row, card: str, gpu: Card) -> Iterator[str]:
    from paligemma.tuning.fitting import fit

    found = fit(row.name, gpu)
    if found is None:
        return
    words = shlex.join(found.options)
    yield (
        f"memory     {found.single.total / _GB:.1f} GB for one row at once"
        f"{' with --checkpointing' if found.checkpointing else ''}, "
        f"{found.single.saved / _GB:.1f} GB on disk"
    )
    if found.processes == 1:
        yield f"           fits one {card}{f' with {words}' if words else ''}"
    elif found.processes is None:
        yield f"           does not fit 64 of {card}; take a larger --card"
    else:
        yield f"           needs {found.processes} of {card}: --processes {found.processes} {words}"


def row_json(row: Row, gpu: Card, rate: float | None) -> dict[str, Any]:
    """A row as JSON."""
    from paligemma.eval.figures import published_json

    hours = row.hours(gpu)
    return {
        "name": row.name,
        "benchmark": row.task.name,
        "model": row.model,
        "transfer": row.transfer,
        "trained_on": None if row.trained_on is None else row.trained_on.name,
        "training_rows": row.num_training_rows(),
        "splits": [split for split, _ in row.splits()],
        "files": {
            folder: [dict(vars(one)) for one in task.files]
            for folder, task in row.folders().items()
        },
        "card_hours": hours,
        "cost": None if hours is None or rate is None else hours * rate,
        "published": [published_json(one) for one in row.figures],
    }


def _figures(row: Row) -> str:
    shown = dict.fromkeys(f"{one.measure} {one.value:g} {one.split}" for one in row.figures)
    words = list(shown)
    more = f"; {len(words) - _MAX_FIGURES} more" if len(words) > _MAX_FIGURES else ""
    return "; ".join(words[:_MAX_FIGURES]) + more


def _cost(row: Row, gpu: Card, rate: float | None) -> str:
    if row.trained_on is None:
        return "-"
    hours = row.hours(gpu)
    if hours is None:
        return "?"
    return f"{hours:,.1f}" + ("" if rate is None else f" ({hours * rate:,.0f})")
