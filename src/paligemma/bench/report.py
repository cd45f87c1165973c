"""Figures as a table for the terminal and as a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paligemma.bench.measure import Figures

_BARS = 30


def table(figures: Figures, machine: Mapping[str, Any]) -> str:
    """Lines for people: first token in its parts, decoding by batch, memory, machine."""
    found = figures.to_json()
    lines = [
        f"first token       {found['first_token_s']:8.3f} s   "
        f"picture {found['vision_s']:.3f}, prompt {found['prefill_s']:.3f}"
        + _share(found["share_of_operations"], "the machine's operations"),
    ]
    for batch in found["tokens_per_s"]:
        lines.append(
            f"decode, batch {batch:<3} {found['tokens_per_s'][batch]:8.2f} tokens/s"
            + _share(found["share_of_bandwidth"][batch], "its bandwidth")
        )
    if found["peak_memory_gb"]:
        lines.append(f"peak memory       {found['peak_memory_gb']:8.2f} GB")
    lines.append(_spread(figures))
    lines.append(
        f"{machine['cpu']}, {machine['threads']} threads, {machine['kernels']}; torch "
        f"{machine['versions']['torch']}"
    )
    return "\n".join(lines)


def _share(share: float | None, of: str) -> str:
    return "" if share is None else f"   {share:.0%} of {of}"


def _spread(figures: Figures) -> str:
    first = sorted(one.vision_s + one.prefill_s for one in figures.timings)
    read = [one.limits.bytes_per_s for one in figures.timings if one.limits.bytes_per_s]
    words = f"{len(first)} repetitions, first token {first[0]:.3f} to {first[-1]:.3f} s"
    if read:
        words += f"; memory read at {min(read) / 1e9:.1f} to {max(read) / 1e9:.1f} GB/s"
    return words


def plot(figures: Figures) -> str:
    """Time of a decoding step over the rows of the batch, as bars of text."""
    steps = {batch: figures.step_s(batch) for batch in figures.timings[0].steps_s}
    longest = max(steps.values())
    return "\n".join(
        f"{batch:>4} rows  {'#' * max(round(_BARS * taken / longest), 1):<{_BARS}} "
        f"{1000 * taken:8.1f} ms a step"
        for batch, taken in steps.items()
    )
