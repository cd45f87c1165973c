"""Figures as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from paligemma.bench.engine_process import OURS
from paligemma.bench.linear import Line
from paligemma.bench.measure import BenchOptions, Figures
from paligemma.bench.turns import Comparison, summary


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
    lines += [_growth(name, line) for name, line in figures.lines().items()]
    lines.append(
        f"{machine['cpu']}, {machine['threads']} threads, {machine['kernels']}; torch "
        f"{machine['versions']['torch']}"
    )
    return "\n".join(lines)


def _share(share: float | None, of: str) -> str:
    return "" if share is None else f"   {share:.0%} of {of}"


def _spread(figures: Figures) -> str:
    first = sorted(one.first_token_s for one in figures.timings)
    times = f"{len(first)} repetition{'s' * (len(first) > 1)}"
    words = f"{times}, first token {first[0]:.3f} to {first[-1]:.3f} s"
    return words + _bandwidth(one.limits.bytes_per_s for one in figures.timings)


def _growth(name: str, line: Line) -> str:
    return (
        f"{name}: {line.start:.3f} s and {1000 * line.slope:.3f} ms for each; no point is farther "
        f"than {line.departure:.1%} from that line"
    )


def comparison_table(made: Comparison, options: BenchOptions, machine: Mapping[str, Any]) -> str:
    """Lines for people: each engine's median and range, and how many times better ours is."""
    engines = (OURS, made.peer.engine)
    lines = [f"{'':26}{engines[0]:26}{engines[1]:26}ours is better by"]
    for name, row in summary(made, options.batches).items():
        cells = "".join(f"{_range(row[engine]):26}" for engine in engines)
        ratio = _range(row["times_better"])
        lines.append(f"{name:26}{cells}{ratio}{' x' * bool(ratio)}".rstrip())
    lines += [f"{engine} failed: {why}" for engine, why in made.failures.items()]
    both = "both loaded at once" if made.side_by_side else "one after the other, loaded anew"
    lines.append(
        f"median [least..most] of {options.repetitions} rounds in turns, {both}"
        + _bandwidth([turn["limits"]["bytes_per_s"] for turn in made.turns])
    )
    if made.peer.engine == "llama.cpp":
        lines.append(
            "llama.cpp reads text of as many tokens as picture and prompt have, with the weights "
            "of its own file: prompt and decode are compared, answers are not"
        )
    elif made.agreement is not None:
        lines.append(_agreement(made.agreement))
    elif not made.failures:
        lines.append("weights are not the same: answers are not compared")
    versions = ", ".join(f"{one} {made.versions[one]}" for one in engines)
    lines.append(f"{versions}; {machine['cpu']}, {machine['threads']} threads")
    return "\n".join(lines)


def _agreement(found: Mapping[str, Any]) -> str:
    token = "the same" if found["same_first_token"] else "another"
    words = (
        f"first logits differ by {found['largest_difference']:.3g} at most, of up to "
        f"{found['largest_logit']:.3g} (relative {found['relative']:.2g}); {token} first token"
    )
    if not found["is_equal_work"]:
        words += "\nTHE ENGINES COMPUTE DIFFERENT THINGS: their times do not compare"
    return words


def _range(found: Mapping[str, float] | None) -> str:
    return (
        "" if found is None else f"{found['median']:.3g} [{found['min']:.3g}..{found['max']:.3g}]"
    )


def _bandwidth(read: Iterable[float | None]) -> str:
    known = [one / 1e9 for one in read if one]
    return f"; memory read at {min(known):.1f} to {max(known):.1f} GB/s" if known else ""
