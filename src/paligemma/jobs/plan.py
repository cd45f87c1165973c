"""Which examples are asked, and which share a batch: fixed before anything is answered.

An answer may depend on its batch by rounding, so a batch is never split or filled anew: it is
answered whole, again if a kill cut it, by whichever process takes it. Nothing here needs a model.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Container, Iterable, Iterator, Sequence

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example

# Batches among which prompts are sorted; the whole of a small run.
WINDOW_BATCHES = 64


def sample_examples(
    examples: Iterable[Example],
    limit: int | None = None,
    seed: int = 0,
    *,
    where: str = "a split",
) -> list[Example]:
    """All examples, or `limit` of them drawn evenly, in the reader's order.

    Examples of one unit are drawn together; only the last unit may be cut.

    Args:
        examples: a stream; never held whole where there is a limit.
        limit: number of examples; None, or more than there are, takes all.
        seed: seed of the draw; the same examples and seed give the same sample.
        where: place that the examples come from, for the message.

    Raises:
        DataError: no example, or an id that occurs twice or is no Unicode.
    """
    seen: set[bytes] = set()

    def checked() -> Iterator[tuple[int, Example]]:
        for position, one in enumerate(examples):
            # Eight bytes an id, so that millions fit.
            try:
                short = hashlib.blake2b(one.id.encode(), digest_size=8).digest()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"ids must be Unicode that files can hold, got {one.id!a}; mend its file"
                ) from error
            if short in seen:
                raise DataError(
                    f"ids must be unique within a split, but {one.id!r} occurs twice; "
                    "remove the copy"
                )
            seen.add(short)
            yield position, one

    if limit is None:
        kept = list(checked())
    else:
        kept = _drawn(checked(), limit, seed)
    if not kept:
        raise DataError(f"{where} must hold at least one example, got none; check its file")
    return [one for _, one in sorted(kept, key=lambda pair: pair[0])]


def _drawn(
    examples: Iterable[tuple[int, Example]], limit: int, seed: int
) -> list[tuple[int, Example]]:
    """Examples of the units that draw the lowest numbers, until there are `limit` of them.

    A unit's number depends on its name and the seed alone, so a unit that fell out stays out.
    """
    units: dict[int, list[tuple[int, Example]]] = {}
    highest: list[int] = []  # Negated, as heapq keeps the lowest in front.
    for position, one in examples:
        name = f"{seed}/{one.id}" if one.unit is None else f"{seed}//{one.unit}"
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        if number in units:
            units[number].append((position, one))
        elif len(units) < limit:
            heapq.heappush(highest, -number)
            units[number] = [(position, one)]
        elif number < -highest[0]:
            del units[-heapq.heapreplace(highest, -number)]
            units[number] = [(position, one)]
    drawn: list[tuple[int, Example]] = []
    for number in sorted(units):
        drawn += units[number][: limit - len(drawn)]
    return drawn


def plan_batches(examples: Sequence[Example], batch_size: int) -> list[tuple[int, ...]]:
    """Batches of like prompts, longest first, as positions in `examples`, each exactly once.

    Prompts about the same pictures stay together, so that these are encoded once a batch, and
    examples with another number of pictures never share one.

    Args:
        examples: in the reader's order; the plan depends on them and the size alone.
        batch_size: most examples a batch.

    Raises:
        ConfigError: a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    by_shape: dict[int, list[int]] = {}
    for position, one in enumerate(examples):
        by_shape.setdefault(len(one.pictures), []).append(position)
    window = WINDOW_BATCHES * batch_size
    plan: list[tuple[int, ...]] = []
    for positions in by_shape.values():
        for first in range(0, len(positions), window):
            ordered = _in_order(examples, positions[first : first + window])
            starts = range(0, len(ordered), batch_size)
            plan += [tuple(ordered[at : at + batch_size]) for at in starts]
    return plan


def _in_order(examples: Sequence[Example], positions: Sequence[int]) -> list[int]:
    """Neighbours share pictures, or else have prompts of like length."""
    groups: dict[str, list[int]] = {}
    for position in positions:
        one = examples[position]
        groups.setdefault(picture_key(one), []).append(position)

    def longest(group: list[int]) -> int:
        return max(len(examples[position].prefix) for position in group)

    # Python's sort is stable: groups of one length stay in the reader's order.
    return [
        position
        for group in sorted(groups.values(), key=longest, reverse=True)
        for position in group
    ]


def picture_key(one: Example) -> str:
    """Equal for examples that show the model the same pixels."""
    return repr((one.pictures, one.mark_box_yxyx))


def open_batches(
    plan: Sequence[Sequence[int]], examples: Sequence[Example], done: Container[str]
) -> list[int]:
    """Numbers of the batches that still hold an example without an answer."""
    return [
        number
        for number, batch in enumerate(plan)
        if any(examples[position].id not in done for position in batch)
    ]
