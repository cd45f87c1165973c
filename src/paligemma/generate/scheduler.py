"""Many prompts in few batches: prompts of like length together, results in the order they came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from paligemma.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")


def plan_batches(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Group items of like length, longest first, so that a batch too large for memory fails at
    once.

    Args:
        lengths: tokens of each prompt.
        batch_size: most items a batch.

    Returns:
        Indices into `lengths`, each exactly once; items of equal length keep their order.

    Raises:
        ConfigError: a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def run_in_batches(
    items: Sequence[Item],
    run: Callable[[list[Item]], Sequence[Result]],
    *,
    length: Callable[[Item], int],
    batch_size: int,
) -> list[Result]:
    """Call `run` on batches of like length and return its results in the order of `items`.

    Raises:
        ConfigError: a batch size below 1.
        ValueError: `run` returned another number of results than it got items.
    """
    results: dict[int, Result] = {}
    for indices in plan_batches([length(item) for item in items], batch_size=batch_size):
        done = run([items[index] for index in indices])
        results.update(zip(indices, done, strict=True))
    return [results[index] for index in range(len(items))]
