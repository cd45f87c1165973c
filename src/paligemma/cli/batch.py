"""`paligemma batch`: labels for pictures by the million, on one machine or a cluster."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from paligemma.cli.options import (
    ModelChoice,
    NamedPath,
    decoding_options,
    model_options,
    object_options,
)
from paligemma.cli.sections import ASKING, SectionedCommand
from paligemma.cli.stopping import when_stopped
from paligemma.errors import ConfigError, DataError

TASKS = ("detect", "segment", "caption", "answer", "read")
_LABELLED = ("detect", "segment")
_SECTIONS = {
    "Input and output": (
        *("source", "output", "form", "coco", "yolo", "pictures", "column", "split", "limit"),
        *("retry", "timing", "overwrite"),
    ),
    "Question": ("task", "labels", "question", "lang", "prompt", "in_words"),
    "Speed": (
        *("batch_size", "part_rows", "num_threads", "processes", "gpus_each", "cpus_each"),
        "ray_address",
    ),
    **ASKING,
}


def prompt_of(
    task: str | None, labels: str | None, question: str | None, lang: str | None, prompt: str | None
) -> str:
    """The prompt, or its template, that the options state.

    Raises:
        ConfigError: none or several are stated, or one needs another.
    """
    from paligemma.processing import prompts

    if (task is None) == (prompt is None):
        raise ConfigError(
            f"a batch asks one thing: state --task ({', '.join(TASKS)}) or --prompt TEMPLATE"
        )
    stated = f"--task {task}" if task else "--prompt"
    needed = {**dict.fromkeys(_LABELLED, "labels"), "answer": "question"}.get(task or "")
    for name, value in (("labels", labels), ("question", question)):
        if (value is not None) != (name == needed):
            rule = "needs" if name == needed else "takes no"
            raise ConfigError(f"{stated} {rule} --{name}")
    if lang is not None and task not in ("caption", "answer"):
        raise ConfigError(f"--lang is of captions and answers, {stated} takes none")
    lang = "en" if lang is None else lang
    if prompt is not None:
        return prompt
    if task in _LABELLED:
        make = prompts.detect_prompt if task == "detect" else prompts.segment_prompt
        return make([one.strip() for one in str(labels).split(";") if one.strip()])
    if task == "caption":
        return prompts.caption_prompt(lang)
    return prompts.read_prompt() if task == "read" else prompts.answer_prompt(str(question), lang)


@click.command(cls=SectionedCommand, sections=_SECTIONS)
@click.option(
    "--input",
    "source",
    required=True,
    metavar="INPUT",
    help="A folder or a pattern of pictures; .jsonl, .parquet or .tar (WebDataset) files; "
    "hub:owner/name.",
)
@click.option(
    "--output",
    required=True,
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Folder of the labels; one that is there goes on.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    show_default=True,
    help="Kind of the files of labels.",
)
@click.option(
    "--coco", type=NamedPath(dir_okay=False), metavar="FILE", help="At the end, also write COCO."
)
@click.option(
    "--yolo", type=NamedPath(file_okay=False), metavar="DIR", help="At the end, also write YOLO."
)
@click.option(
    "--pictures",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Folder below which named pictures lie; that of their file by default.",
)
@click.option(
    "--image-column",
    "column",
    default="image",
    show_default=True,
    metavar="NAME",
    help="Field or column of the picture.",
)
@click.option("--split", metavar="NAME", help="Part of a data set; all by default.")
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="Ask the first N rows; all by default."
)
@click.option("--task", type=click.Choice(TASKS), help="What is asked of every picture.")
@click.option("--labels", metavar="LABELS", help='For detect and segment: "cat ; dog".')
@click.option(
    "--question", metavar="TEXT", help="For answer; {column} stands for a field of the row."
)
@click.option("--lang", help="Language of captions and answers; en by default.")
@click.option(
    "--prompt",
    metavar="TEMPLATE",
    help='Any prompt in the place of --task, such as "answer en {question}".',
)
@click.option("--in-words", is_flag=True, help="Keep answers as text, whatever the model writes.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Rows asked at once.",
)
@click.option(
    "--part-rows",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    help="Rows of a file of labels; a kill loses at most those under way.",
)
@click.option(
    "--workers",
    "num_threads",
    type=click.IntRange(0, 64),
    default=2,
    show_default=True,
    help="Threads that read pictures.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 65_536),
    default=1,
    show_default=True,
    help="Models that answer at once, through Ray.",
)
@click.option(
    "--gpus-each", type=click.FloatRange(0), default=0.0, help="GPUs of each process; 0 by default."
)
@click.option(
    "--cpus-each",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Cores of each process.",
)
@click.option("--ray-address", metavar="HOST:PORT", help="A Ray cluster; by default this machine.")
@click.option("--retry", is_flag=True, help="Ask again what was quarantined, with its parts.")
@click.option(
    "--timing", is_flag=True, help="Write seconds beside every row; bytes then differ by run."
)
@click.option(
    "--overwrite", is_flag=True, help="Let --coco and --yolo replace files of other origin."
)
@model_options
@object_options
@decoding_options
@when_stopped("goes on where it stopped")
def batch(
    *,
    source: str,
    output: Path,
    coco: Path | None,
    yolo: Path | None,
    task: str | None,
    labels: str | None,
    question: str | None,
    lang: str | None,
    prompt: str | None,
    in_words: bool,
    batch_size: int,
    num_threads: int,
    processes: int,
    gpus_each: float,
    cpus_each: float,
    ray_address: str | None,
    retry: bool,
    overwrite: bool,
    model: ModelChoice,
    objects: dict[str, Any],
    decoding: dict[str, Any],
    **where: Any,
) -> None:
    """Label all pictures of INPUT: rows into files, each exactly once.

    A run that is stopped or killed goes on by the same command, on one machine or on a cluster, and
    ends with the same files. Rows without an answer, such as pictures that cannot be read, are kept
    with their reasons in DIR/quarantine and stop nothing.

    \b
    paligemma batch --input photos/ --output labels --task detect --labels "cat ; dog"
    paligemma batch --input rows.jsonl --output answers --prompt "answer en {question}" \\
        --format parquet --processes 2
    """
    from paligemma.jobs.labelling.export_places import ExportPlaces
    from paligemma.jobs.labelling.folder import QUARANTINE
    from paligemma.jobs.labelling.run import Labelling, label
    from paligemma.processing.prompts import object_prompt
    from paligemma.tasks.own.columns import fields_of

    template = prompt_of(task, labels, question, lang, prompt)
    if (coco or yolo) and (in_words or (task is not None and task not in _LABELLED)):
        raise ConfigError(
            "--coco and --yolo hold objects, which answers in words have none of; leave them out, "
            "or ask with --task detect"
        )
    places = ExportPlaces(labels=output, coco=coco, yolo=yolo, overwrite=overwrite)
    places.require_free()
    job = Labelling(input=source, output=output, prompt=template, batch_size=batch_size, **where)
    labelling = _labelling(template, objects, decoding, in_words=in_words, batch_size=batch_size)
    record: dict[str, Any] = {
        "model": model.label,
        "loading": {name: str(value) for name, value in model.options.items()},
    }
    record |= {"command": shlex.join(["paligemma", *sys.argv[1:]])}
    how: dict[str, Any] = {"num_threads": num_threads, "retry": retry, "record": record}
    how["progress"] = sys.stderr.isatty()
    if processes == 1 and ray_address is None:
        from paligemma.jobs.labelling.answering import ModelLabeller

        found = label(job, ModelLabeller(model.load(), **labelling), **how)
    else:
        from paligemma.jobs.cluster import Cluster
        from paligemma.jobs.labelling.answering import load_labeller

        cluster = Cluster(
            make_answerer=cast(Any, partial(load_labeller, model.name, model.options, **labelling)),
            num_workers=processes,
            gpus_each=gpus_each,
            cpus_each=cpus_each,
            address=ray_address,
        )
        found = label(job, cluster, **how)
    rate = found.num_new / found.seconds if found.num_new else 0.0
    num_labelled = found.num_rows - found.num_quarantined
    click.echo(
        f"{found.num_rows:,} rows in {output}: {num_labelled:,} labelled, "
        f"{found.num_quarantined:,} quarantined; {found.num_new:,} now, {rate:.2f} a second"
    )
    if found.missing.num_missing:
        click.echo(f"paligemma: {found.missing.sentence}", err=True)
    if found.num_rows and not num_labelled:
        raise DataError(f"no row was labelled; {output}/{QUARANTINE} says why")
    named = None if labels is None else object_prompt(template)
    asked = () if named is None else named.labels
    classes = [one for one in asked if not fields_of(one)]  # a field is no class
    for written in places.write(found.folder, classes):
        click.echo(f"wrote {written}", err=True)


def _labelling(
    template: str,
    objects: dict[str, Any],
    decoding: dict[str, Any],
    *,
    in_words: bool,
    batch_size: int,
) -> dict[str, Any]:
    """The arguments of `ModelLabeller`."""
    calibration = objects.pop("calibration")
    stated = {name: value for name, value in objects.items() if value not in (None, False)}
    if in_words and stated:
        raise ConfigError(
            f"options of objects, {', '.join(sorted(stated))}, are not for answers --in-words"
        )
    return {
        "options": {**stated, **decoding},
        "in_words": in_words,
        "batch_size": batch_size,
        "masks": template.startswith(("segment", "{")),
        "calibration": calibration,
    }
