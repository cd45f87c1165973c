"""`paligemma data`: check, convert and show labelled pictures before a model learns from them."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import NamedPath, overwrite_option
from paligemma.cli.sections import ModelName, NamingGroup
from paligemma.cli.show import echo_json
from paligemma.errors import DataError
from paligemma.whole_file import require_free

if TYPE_CHECKING:
    from paligemma.tasks.lint import Summary

_MAX_SHOWN = 20


@click.group("data", cls=NamingGroup)
def data_group() -> None:
    """Labelled pictures: rows of a user, or labels that other tools wrote.

    \b
    paligemma data check cards/ --model google/paligemma2-3b-pt-448
    paligemma data convert cards/ --to coco -o cards-coco/
    paligemma data show cards/ -o sheet.png
    """


@data_group.command("check")
@click.argument("data", type=NamedPath())
@click.option(
    "--model",
    envvar="PALIGEMMA_MODEL",
    default="tiny",
    show_default=True,
    type=ModelName(),
    metavar="MODEL",
    help="Model whose tokens are counted.",
)
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@click.pass_context
def check_command(ctx: click.Context, data: Path, model: str, as_json: bool) -> None:
    """Check every row as training does, and say what is wrong with it.

    Exits with 1 where there are errors; warnings are rows that are learnt from all the same.
    """
    from paligemma.pipeline.loading import LoadOptions, load_processor
    from paligemma.tasks.catalog import find_task
    from paligemma.tasks.lint import Lint, Summary
    from paligemma.tasks.own.files import TASK, recognise, splits_of
    from paligemma.tuning.rows import codec_of

    splits = splits_of(data)
    processor, _ = load_processor(model, LoadOptions())
    lint = Lint(find_task(TASK), processor, codec_of(model))
    described: list[dict[str, Any]] = []
    num_errors = 0
    for split in splits:
        source = recognise(data, split)
        if not as_json:
            click.echo(f"{split}: {source.format}, recognised by {source.path}")
        summary = Summary()
        findings = [one for _, found in lint.rows(data, split, summary) for one in found]
        num_errors += sum(one.is_error for one in findings)
        described.append(
            {
                "split": split,
                "format": source.format,
                "recognised_by": str(source.path),
                **summary.to_json(),
                "findings": [
                    {
                        "rule": one.rule,
                        "severity": "error" if one.is_error else "warning",
                        "sentence": one.said,
                    }
                    for one in findings
                ],
            }
        )
        if not as_json:
            shown: dict[str, int] = {}
            for one in findings:
                shown[one.rule] = shown.get(one.rule, 0) + 1
                if shown[one.rule] <= _MAX_SHOWN:
                    kind = "error" if one.is_error else "warning"
                    click.echo(f"  {kind}, {one.rule}: {one.said}")
            for rule, number in shown.items():
                if number > _MAX_SHOWN:
                    click.echo(f"  {rule}: {number - _MAX_SHOWN} more; --json lists all")
            _echo_summary(summary)
    if as_json:
        echo_json({"data": str(data), "model": model, "splits": described})
    else:
        click.echo(f"{num_errors or 'no'} error{'s' * (num_errors != 1)}")
    ctx.exit(1 if num_errors else 0)


def _echo_summary(summary: Summary) -> None:
    """Print what the rows of a split hold."""
    click.echo(f"  rows: {summary.num_rows}, of which {summary.num_good} can be learnt from")
    if summary.rules:
        click.echo(f"  rules: {_counts(summary.rules)}")
    if summary.objects:
        numbers = sorted(summary.objects)
        click.echo(
            f"  boxes a picture: {numbers[0]} to {numbers[-1]}, median "
            f"{statistics.median(numbers):g}; pictures without: {numbers.count(0)}"
        )
        click.echo(f"  labels: {_counts(summary.labels)}")
    if summary.tokens:
        numbers = sorted(summary.tokens)
        click.echo(
            f"  tokens a row: {numbers[0]} to {numbers[-1]}, median {statistics.median(numbers):g}"
        )


def _counts(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda one: -one[1])
    more = f", and {len(ranked) - _MAX_SHOWN} more" if len(ranked) > _MAX_SHOWN else ""
    return ", ".join(f"{name} {number}" for name, number in ranked[:_MAX_SHOWN]) + more


@data_group.command("convert")
@click.argument("data", type=NamedPath())
@click.option(
    "--to",
    "form",
    type=click.Choice(["jsonl", "coco", "yolo", "voc"]),
    required=True,
    help="Format to write.",
)
@click.option(
    "--output",
    "-o",
    type=NamedPath(file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder of the new set; must not exist, or be empty.",
)
@click.option(
    "--model",
    type=ModelName(),
    metavar="MODEL",
    help="Model whose mask codec wrote the codewords of the answers; their masks are kept then.",
)
@click.pass_context
def convert_command(
    ctx: click.Context, data: Path, form: str, output: Path, model: str | None
) -> None:
    """Write a set in another format, with copies of its pictures.

    Rows with errors, and rows in words where the format holds objects only, are left out and named;
    the exit code is then 1.
    """
    from paligemma.tasks.own.writing import convert

    codec = None
    if model is not None:
        from paligemma.tuning.rows import codec_of

        codec = codec_of(model)()
    done = convert(data, form, output, codec)
    for sentence in done.skipped[:_MAX_SHOWN]:
        click.echo(f"left out: {sentence}", err=True)
    if len(done.skipped) > _MAX_SHOWN:
        click.echo(f"left out: {len(done.skipped) - _MAX_SHOWN} rows more", err=True)
    rows = ", ".join(f"{number} of {split}" for split, number in done.num_rows.items())
    click.echo(f"wrote {output}: {rows}" + (f"; left out {n}" if (n := len(done.skipped)) else ""))
    ctx.exit(1 if done.skipped else 0)


@data_group.command("show")
@click.argument("data", type=NamedPath())
@click.option(
    "--output",
    "-o",
    type=NamedPath(dir_okay=False),
    required=True,
    metavar="PNG",
    help="File of the contact sheet.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "valid", "test"]),
    default="train",
    show_default=True,
    help="Split to show.",
)
@click.option(
    "--number",
    type=click.IntRange(1, 400),
    default=24,
    show_default=True,
    help="Pictures, spread evenly over the split.",
)
@click.option(
    "--augment",
    metavar="LIST",
    help="Show them as `train --augment LIST` draws them, at a first visit.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what --augment draws.")
@overwrite_option
def show_command(
    data: Path,
    output: Path,
    split: str,
    number: int,
    augment: str | None,
    seed: int,
    overwrite: bool,
) -> None:
    """Draw pictures with their boxes, masks and labels on one sheet."""
    from paligemma.outputs.export import save_png
    from paligemma.tasks.own.files import recognise
    from paligemma.tasks.own.sheet import chosen_rows, labelled_sheet

    require_free(output, overwrite=overwrite)
    examples, bad = chosen_rows(list(recognise(data, split).rows()), number)
    if not examples:
        raise DataError(f"no row of {data} can be shown; the first fault: {(bad or ['no row'])[0]}")
    if augment is not None:
        from paligemma.tuning.setup import augmented

        examples = augmented(examples, augment.split(","), "tiny", seed)
    save_png(labelled_sheet(examples, min(4, len(examples))), output)
    click.echo(
        f"wrote {output}: {len(examples)} pictures" + (f"; {len(bad)} bad rows" if bad else "")
    )
