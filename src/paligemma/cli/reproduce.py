"""`paligemma reproduce`: the rows of both papers, each by one command."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.paper_rows import described, overview, row_json
from paligemma.cli.sections import RowName
from paligemma.cli.show import echo_json
from paligemma.cli.stopping import when_stopped
from paligemma.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from paligemma.tasks.task import Task
    from paligemma.tuning.plan import Card
    from paligemma.tuning.reproduce import Row


@click.command("reproduce")
@click.argument("name", required=False, type=RowName())
@click.option("--list", "lists", is_flag=True, help="List the rows with figures and cost.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what NAME needs, costs and runs; check --data; run nothing.",
)
@click.option(
    "--data",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Folder that holds a folder for each benchmark, named like it.",
)
@click.option(
    "--output",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Folder of the runs; runs/reproduce/NAME by default.",
)
@click.option("--model", help="Begin with this model in the place of the published one.")
@click.option("--trained", metavar="MODEL", help="Measure this fine-tuned model; train nothing.")
@click.option(
    "--steps", type=click.IntRange(1, 10**8), metavar="N", help="Updates, instead of the recipe's."
)
@click.option("--batch-size", type=click.IntRange(1, 65_536), metavar="N", help="Rows an update.")
@click.option("--micro-size", type=click.IntRange(1, 65_536), metavar="N", help="Rows at once.")
@click.option("--checkpointing", is_flag=True, help="Less memory, a third more time.")
@click.option(
    "--processes",
    type=click.IntRange(1, 4096),
    help="Processes of the training on this machine, started by torchrun; as many cards as it "
    "needs by default.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Examples that are measured.")
@click.option(
    "--card",
    default="h100-80",
    show_default=True,
    metavar="NAME",
    help="GPU that the training is to fit, and of the cost.",
)
@click.option("--rate", type=click.FloatRange(0, 1e6), metavar="X", help="Price of a card's hour.")
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def reproduce(
    *,
    name: str | None,
    lists: bool,
    dry_run: bool,
    data: Path | None,
    output: Path | None,
    card: str,
    rate: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Reproduce a row of the papers: train as published, measure, show both figures.

    \b
    paligemma reproduce --list
    paligemma reproduce docvqa/paligemma-3b-pt-448 --dry-run
    paligemma reproduce docvqa/paligemma-3b-pt-448 --data data/
    paligemma reproduce docvqa/paligemma-3b-pt-448 --data data/ --trained runs/docvqa/model

    A row is a benchmark and the released model it begins with. The same command goes on with a
    run that was stopped. Studies and other systems' figures of the papers are no rows.
    """
    from paligemma.tuning.plan import CARDS
    from paligemma.tuning.reproduce import find_row, rows

    if rate is not None and math.isnan(rate):  # which no range of click's refuses
        raise ConfigError(f"--rate takes finite numbers, got {rate}")
    if card not in CARDS:
        raise ConfigError(f"a card must be one of {', '.join(CARDS)}, got {card!r:.80}")
    if lists:
        if name is not None:
            raise click.UsageError("--list shows every row; leave NAME out")
        known = list(rows().values())
        if as_json:
            echo_json({"rows": [row_json(row, CARDS[card], rate) for row in known]})
        else:
            click.echo("\n".join(overview(known, card, CARDS[card], rate)))
        return
    if name is None:
        raise click.UsageError("name a row, or list them with --list")
    row = find_row(name)
    folder = output or Path("runs/reproduce") / name
    steps = list(_commands(row, data or Path("data"), folder, gpu=CARDS[card], **options))
    if dry_run:
        for words, _ in steps:
            check_command(words)
        found = _checked(row, data, is_trained=options["trained"] is not None)
        if as_json:
            shown = [shlex.join(_typed(words, count)) for words, count in steps]
            echo_json({**row_json(row, CARDS[card], rate), "commands": shown, "found": found})
            return
        for line in described(row, card, CARDS[card], rate):
            click.echo(line)
        click.echo("\nfiles")
        for line in found:
            click.echo(f"  {line}")
        click.echo("\ncommands")
        for words, count in steps:
            click.echo(f"  {shlex.join(_typed(words, count))}")
        return
    if data is None:
        raise click.UsageError("a row needs its files in --data; --dry-run lists them without any")
    if as_json:
        raise click.UsageError("--json is of --list and --dry-run; figures are in the runs' folder")
    run_commands(steps)


def _commands(
    row: Row,
    data: Path,
    output: Path,
    *,
    gpu: Card,
    model: str | None,
    trained: str | None,
    steps: int | None,
    batch_size: int | None,
    micro_size: int | None,
    checkpointing: bool,
    processes: int | None,
    limit: int | None,
) -> Iterator[tuple[tuple[str, ...], int]]:
    """The commands with the number of their processes.

    Where nothing is stated that changes the memory of the training, it gets the options with which
    it fits the card.
    """
    from paligemma.tuning.fitting import fit
    from paligemma.tuning.reproduce import commands

    if trained is not None and model is not None:
        raise click.UsageError("--trained is measured as it is; leave --model out")
    if trained is None and micro_size is None and processes is None and not checkpointing:
        found = fit(row.name, gpu)
        if found is not None:
            micro_size, checkpointing = found.micro_size, found.checkpointing
            processes = found.processes
            if micro_size is not None and batch_size is not None:
                micro_size = min(micro_size, batch_size)
    stated = {"--steps": steps, "--batch-size": batch_size, "--micro-size": micro_size}
    more = [word for key, value in stated.items() if value for word in (key, str(value))]
    more += ["--checkpointing"] if checkpointing else []
    for words in commands(row, data, output, model=model, trained=trained, more=tuple(more)):
        is_training = words[0] == "train"
        is_measured = words[0] == "eval" and words[1] != "submission"
        limited = ("--limit", str(limit)) if limit and is_measured else ()
        yield (*words, *limited), (processes or 1) if is_training else 1


def check_command(words: Sequence[str]) -> None:
    """Parse a command without running it.

    Raises:
        click.ClickException: an option or a name is wrong.
    """
    from paligemma.cli import main

    context = main.make_context("paligemma", [], resilient_parsing=True)
    command: click.Command = main
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"there is no command {rest[0]!r:.80}")
        command, rest = found, rest[1:]
    command.make_context(command.name, rest, parent=context)


def run_commands(steps: Sequence[tuple[tuple[str, ...], int]]) -> None:
    """Run the commands one after another; each goes on with what it finds done."""
    from paligemma.cli import main

    for words, count in steps:
        click.echo(f"$ {shlex.join(_typed(words, count))}", err=True)
        if words[:2] == ("eval", "submission"):
            words = (*words, "--overwrite")
        if count == 1:
            main.main(list(words), prog_name="paligemma", standalone_mode=False, obj=list(words))
        elif status := _torchrun(words, count):
            raise RunError(
                f"the training ended with exit code {status}; run the same command again"
            )


@when_stopped("goes on where it stopped")
def _torchrun(words: Sequence[str], count: int) -> int:
    _, *typed = _typed(words, count)
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", *typed]).returncode


def _training_rows(task: Task, data: Path, splits: Sequence[str]) -> tuple[list[str], list[str]]:
    """First rows of the published training splits, and what is said of those that are missing.

    As in a training, `train` alone is learnt from where none of them is there, and it may not be
    missing where it is one of them.
    """
    from paligemma.tuning.reproduce import first_row

    read: list[str] = []
    missing: list[str] = []
    for split in (*splits, *(() if "train" in splits else ("train",))):
        if split == "train" and read and split not in splits:
            break
        try:
            read.append(f"{data.name} {split}: {first_row(task, data, split)}")
        except DataError as error:
            missing.append(f"{data.name} {split}: {error}")
            if split == "train":
                return [], missing
    return read, missing


def _typed(words: Sequence[str], count: int) -> list[str]:
    """A command as it is typed."""
    if count == 1:
        return ["paligemma", *words]
    return ["torchrun", "--standalone", f"--nproc-per-node={count}", "-m", "paligemma", *words]


def _checked(row: Row, data: Path | None, *, is_trained: bool) -> list[str]:
    """What a row needs below the data folder; with one, the first rows of every split.

    Raises:
        DataError: files in --data are wrong or missing; all of them are named.
    """
    from paligemma.tuning.reproduce import first_row, training_splits_of

    found, missing = [], []
    learnt = [] if is_trained else training_splits_of(row)
    for folder, task in row.folders().items():
        splits = [split for split, _ in row.splits()] if task is row.task else []
        if data is None:
            if splits or (task is row.trained_on and learnt):
                found += [f"{folder}/{one.path}  from {one.source}" for one in task.files]
            continue
        if task is row.trained_on and learnt:
            read, left_out = _training_rows(task, data / folder, learnt)
            found += read
            missing += left_out if not read else []
            found += [f"left out of the training: {one}" for one in left_out if read]
        for split in splits:
            try:
                found.append(f"{folder} {split}: {first_row(task, data / folder, split)}")
            except DataError as error:
                missing.append(f"{folder} {split}: {error}")
    if row.training_rows_are_own() and not is_trained:
        found.append(
            f"{row.task.name}-train/train.jsonl  rows of your own: the papers' training set was "
            "not released"
        )
    if missing:
        raise DataError("; ".join(missing))
    return found
