"""`paligemma eval list`: every benchmark, and all there is to know about one."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.sections import BenchmarkName
from paligemma.cli.show import echo_json

if TYPE_CHECKING:
    from paligemma.tasks.published import PublishedScore
    from paligemma.tasks.task import Task

_WIDTH = 100
_MAX_SPLITS = 6


@click.command("list")
@click.argument("name", type=BenchmarkName(), required=False)
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def list_command(name: str | None, as_json: bool) -> None:
    """List the benchmarks by family; with NAME, what one needs, asks and was published with.

    Published figures are of the split that is reported first, by model and resolution.
    """
    from paligemma.tasks.catalog import find_task, tasks

    if name is not None:
        task = find_task(name)
        if as_json:
            echo_json(task_json(task))
        else:
            click.echo(describe(task))
        return
    known = list(tasks().values())
    if as_json:
        echo_json({"tasks": [task_json(task) for task in known]})
        return
    click.echo(overview(known))


def overview(known: Sequence[Task]) -> str:
    """Families with a line or two a benchmark."""
    width = max(len(task.name) for task in known)
    lines = []
    for family in dict.fromkeys(task.family for task in known):
        lines.append(family)
        for task in known:
            if task.family != family:
                continue
            named = [*task.splits, *(f"{split} (server)" for split in task.server_splits)]
            more = f" and {len(named) - _MAX_SPLITS} more" if len(named) > _MAX_SPLITS + 1 else ""
            splits = ", ".join(named[:_MAX_SPLITS] if more else named) + more
            lines.append(f"  {task.name:{width}}  {task.title}; {splits}; {task.headline}")
            if task.hub_copy is not None:
                lines.append(f"  {'':{width}}    hub copy: {', '.join(task.hub_copy.names)}")
            lines += [f"  {'':{width}}    {line}" for line in _published_lines(task)]
        lines.append("")
    return "\n".join([*lines, "files, prompt, decoding and traps of one: paligemma eval list NAME"])


def _published_lines(task: Task) -> list[str]:
    """One line a model: its figures by resolution."""
    from paligemma.tasks.published import published

    comparable = published(task, our_split=task.splits[0])
    by_model: dict[str, dict[int, float]] = {}
    for one in comparable:
        if one.measure == task.headline and one.resolution is not None:
            model = by_model.setdefault(f"{one.family} {one.size}", {})
            model.setdefault(one.resolution, one.value)
    return [
        f"{model}: " + ", ".join(f"{value:g} at {px}" for px, value in sorted(figures.items()))
        for model, figures in by_model.items()
    ]


def task_json(task: Task) -> dict[str, Any]:
    """Everything about one benchmark as JSON."""
    from paligemma.eval.figures import published_json
    from paligemma.tasks.published import published

    comparable = {split: published(task, our_split=split) for split in task.splits}
    return {
        "name": task.name,
        "title": task.title,
        "family": task.family,
        "splits": list(task.splits),
        "server_splits": list(task.server_splits),
        "headline": task.headline,
        "asking": dict(vars(task.asking)),
        "files": [dict(vars(one)) for one in task.files],
        "hub_copy": None if task.hub_copy is None else dataclasses.asdict(task.hub_copy),
        "traps": list(task.traps),
        "rules": {name: list(choices) for name, choices in task.rules.items()},
        "transfer": task.transfer,
        "is_zero_shot": task.is_zero_shot,
        "has_submission": task.submission is not None,
        "published": [
            {
                **published_json(one),
                "our_splits": [split for split, scores in comparable.items() if one in scores],
            }
            for one in published(task)
        ],
    }


def describe(task: Task) -> str:
    """One benchmark for people: files, prompt, decoding, traps, published figures."""
    from paligemma.tasks.published import published
    from paligemma.tasks.reading.hub_columns import needed_columns, optional_columns

    asking = task.asking
    beams = "greedy" if asking.num_beams == 1 else f"beam search of {asking.num_beams}"
    pictures = "" if asking.num_pictures == 1 else f"{asking.num_pictures} pictures a question, "
    square = "padded to a square, " if asking.pad_to_square else ""
    lines = [f"{task.title} ({task.name}), family {task.family}", ""]
    lines.append(f"splits      {', '.join(task.splits)}")
    if task.server_splits:
        lines.append(
            f"            {', '.join(task.server_splits)}: answered here, scored by a server"
        )
    lines.append(f"measure     {task.headline}")
    if task.transfer is not None:
        how = "zero-shot, asked of the model of" if task.is_zero_shot else "fine-tuned by"
        lines.append(f"model       {how} the published transfer {task.transfer!r}")
    lines.append(
        f"asked with  {pictures}{square}{asking.resize_method}; {beams}, at most "
        f"{asking.max_new_tokens} tokens"
    )
    for name, choices in task.rules.items():
        lines.append(f"rule        {name}={choices[0]} (the default), or {', '.join(choices[1:])}")
    lines += ["", "files below the data folder" if task.files else "needs no files"]
    for one in task.files:
        lines.append(f"  {one.path}")
        lines += _wrapped(f"from {one.source}", 6)
        if one.fields:
            lines += _wrapped(f"read: {one.fields}", 6)
    if task.hub_copy is not None:
        lines += ["", "or a parquet copy in the data folder, with its pictures inside"]
        lines += _wrapped(f"such as {' or '.join(task.hub_copy.names)}", 2)
        lines += _wrapped(needed_columns(task.hub_copy), 2)
        if task.hub_copy.optional:
            lines += _wrapped(f"read where it has them: {optional_columns(task.hub_copy)}", 2)
    if task.traps:
        lines += ["", "traps"]
        for trap in task.traps:
            lines += _wrapped(trap, 4, first="  - ")
    scores = published(task)
    if scores:
        lines += ["", "published, by resolution", *_published_table(scores)]
    return "\n".join(lines)


def _published_table(scores: Sequence[PublishedScore]) -> list[str]:
    """A line a model and place, with its figures by resolution; then the sources by number."""
    sources = list(dict.fromkeys(one.source for one in scores))
    places = dict.fromkeys((one.measure, one.split, one.is_test_server) for one in scores)
    lines = []
    for place in places:
        measure, split, is_server = place
        lines.append(f"  {measure}, {split}{', from the test server' if is_server else ''}")
        own = [one for one in scores if (one.measure, one.split, one.is_test_server) == place]
        for row in dict.fromkeys((one.family, one.size, one.source) for one in own):
            family, size, source = row
            figures = ", ".join(
                _figure(one) for one in own if (one.family, one.size, one.source) == row
            )
            model = f"{family} {size}" if size else family
            lines.append(f"    {model:16} {figures}  [{sources.index(source) + 1}]")
    for number, source in enumerate(sources, start=1):
        lines += _wrapped(source, 6, first=f"  [{number}] ")
    return lines


def _figure(one: PublishedScore) -> str:
    spread = "" if one.std is None else f" +- {one.std:g}"
    side = f"{one.resolution}: " if one.resolution else ""
    return f"{side}{one.value:g}{spread}"


def _wrapped(text: str, indent: int, *, first: str | None = None) -> list[str]:
    blank = " " * indent
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=blank if first is None else first,
        subsequent_indent=blank,
        break_long_words=False,
        break_on_hyphens=False,
    )
