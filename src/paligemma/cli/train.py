"""`paligemma train`: teach a model a task; or make the embedded model, from drawing to file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from paligemma.cli.finetune import TrainGroup, run_finetune
from paligemma.cli.finetune_options import SECTIONS, finetune_options
from paligemma.cli.options import NamedPath, overwrite_option
from paligemma.cli.stopping import when_stopped
from paligemma.errors import ConfigError
from paligemma.whole_file import require_free


@click.group("train", cls=TrainGroup, sections=SECTIONS, invoke_without_command=True)
@finetune_options
@click.pass_context
def train_group(ctx: click.Context, /, **values: Any) -> None:
    """Teach a model your task from rows of picture, prompt and answer.

    \b
    paligemma train --data cards/ --model google/paligemma2-3b-pt-448 --output runs/cards
    paligemma detect photo.jpg king --model google/paligemma2-3b-pt-448 --adapter runs/cards

    transfer:NAME trains a published transfer from its benchmark's official files, with the values
    of the model's resolution; `paligemma eval docvqa` then shows the published score beside yours:

    \b
    paligemma train transfer:docvqa --data docvqa/ --model google/paligemma-3b-pt-896

    cards/ holds train.jsonl and, if there are rows to measure with, valid.jsonl; each line is
    {"image": "a.jpg", "prefix": "detect king", "suffix": "<loc0100>...<loc0900> king"}. Labels of
    COCO, YOLO, Pascal VOC and LabelMe, parquet, tar shards and hub:owner/name are read too;
    `paligemma data check cards/` shows what is wrong with them, and `paligemma plan` what a
    training needs. The same command goes on with a run that was stopped.

    stage1, stage2a and stage2b are the stages of pre-training, on several sets:

    \b
    paligemma train stage1 --mixture mixture.yaml --output runs/stage1

    transfer:colpali teaches a model to find pages, from pairs of a query and its page:

    \b
    paligemma train transfer:colpali --data pairs.jsonl --model vidore/colpali-v1.3

    The subcommands train the embedded model, its mask codec and its tokenizer:

    \b
    paligemma train tokenizer --output runs/parts/tokenizer.model
    paligemma train codec --output runs/parts/mask_codec.safetensors
    paligemma train tiny --parts runs/parts --output runs/tiny
    paligemma train retrieval --output runs/retrieval
    """
    if ctx.invoked_subcommand is None:
        run_finetune(**values)


@train_group.command("tiny")
@click.option(
    "--output",
    type=NamedPath(file_okay=False),
    default=Path("runs/tiny"),
    show_default=True,
    help="Folder of checkpoints and metrics; the finished model lies in its folder `model`.",
)
@click.option(
    "--parts",
    type=NamedPath(file_okay=False),
    default=None,
    metavar="DIR",
    help="Folder of tokenizer.model and mask_codec.safetensors; those of the package by default.",
)
@click.option("--stage", "only", default=None, help="Run only this stage; all by default.")
@click.option("--threads", type=click.IntRange(1, 256), default=None, help="CPU threads.")
@click.option(
    "--budget",
    type=click.Choice(["cpu", "card"]),
    default="cpu",
    show_default=True,
    help="Small steps for some hours of two cores, or few large ones for a GPU.",
)
@click.option("--device", default="cpu", show_default=True, help="Where updates are computed.")
@click.option("--compile", "compiled", is_flag=True, help="A sixth faster; needs g++.")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that draw pictures.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of products; bfloat16 halves the time where the processor multiplies it.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@when_stopped("goes on where it stopped")
def tiny_command(
    output: Path,
    parts: Path | None,
    only: str | None,
    threads: int | None,
    budget: str,
    device: str,
    compiled: bool,
    workers: int,
    precision: str,
    quiet: bool,
) -> None:
    """Train the embedded model on drawn pictures, stage after stage.

    The training takes hours on a CPU. You can stop it at any time: the same command continues
    where it stopped, on the data it would have seen. Each stage logs its losses in metrics.jsonl.
    """
    import torch

    from paligemma.tiny.training import EMBEDDED, train_tiny

    if threads is not None:
        torch.set_num_threads(threads)
    folder = train_tiny(
        output,
        parts=parts or EMBEDDED,
        only=only,
        budget=budget,
        precision=getattr(torch, precision),
        device=device,
        compiled=compiled,
        num_workers=workers,
        progress=not quiet,
    )
    if folder is not None:
        click.echo(f"wrote {folder}; try: paligemma eval scenes --model {folder}")


@train_group.command("retrieval")
@click.option(
    "--output",
    type=NamedPath(file_okay=False),
    default=Path("runs/retrieval"),
    show_default=True,
    help="Folder of checkpoints and metrics; the adapter lies in its folder `retrieval`.",
)
@click.option("--steps", type=click.IntRange(1, 10**6), default=None, help="Of the schedule.")
@click.option("--stop-at", type=click.IntRange(1, 10**6), default=None, help="Last update.")
@click.option("--seed", type=click.IntRange(0, 10**6), default=0, show_default=True)
@click.option(
    "--workers", type=click.IntRange(0, 256), default=1, show_default=True, help="Draw the pages."
)
@click.option("--threads", type=click.IntRange(1, 256), default=None, help="CPU threads.")
@click.option("--device", default=None, metavar="NAME", help="cpu or cuda; cpu by default.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@when_stopped("goes on where it stopped")
def retrieval_command(
    output: Path,
    steps: int | None,
    stop_at: int | None,
    seed: int,
    workers: int,
    threads: int | None,
    device: str | None,
    quiet: bool,
) -> None:
    """Teach the embedded model to find drawn pages: an adapter, and ColPali's projection."""
    import torch

    from paligemma.tiny.retrieval import RetrievalTraining, train_retrieval

    if threads is not None:
        torch.set_num_threads(threads)
    training = RetrievalTraining(seed=seed, stop_at=stop_at)
    if steps is not None:
        # A short run, to try the command out, warms up for half of it at most.
        warmup = min(training.warmup_steps, steps // 2)
        training = replace(training, steps=steps, warmup_steps=warmup)
    folder, share = train_retrieval(
        output, training, device=device, num_workers=workers, progress=not quiet
    )
    click.echo(f"wrote {folder}: of 200 held-out pages {share:.1%} rank first for their query")


@train_group.command("codec")
@click.option(
    "--output",
    type=NamedPath(dir_okay=False),
    default=Path("runs/mask_codec.safetensors"),
    show_default=True,
    help="File to write; its record goes beside it as .json.",
)
@click.option("--steps", type=int, default=None, help="Number of updates; 6000 by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and order.")
@click.option("--resume", is_flag=True, help="Refuse to begin anew.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@overwrite_option
@when_stopped("goes on where it stopped")
def codec_command(
    output: Path, steps: int | None, seed: int, resume: bool, quiet: bool, overwrite: bool
) -> None:
    """Train the mask codec on masks of drawn pictures; takes about seven minutes.

    You can stop it at any time: the same command continues where it stopped. Checkpoints and
    metrics.jsonl lie beside the file, in a folder of its name that ends in .train.
    """
    from paligemma.tiny.mask_codec import MaskCodecTraining, run_folder, train_codec_file

    has_begun = run_folder(output).is_dir()
    if resume and not has_begun:
        raise ConfigError(
            f"--resume goes on with a training, and none began in {run_folder(output)}; check "
            "--output, or leave --resume out to begin one"
        )
    for path in (output, output.with_suffix(".json")):
        # What lies beside its own training was written by it.
        require_free(path, overwrite=overwrite or has_begun)
    options = replace(MaskCodecTraining(), seed=seed)
    if steps is not None:
        # A short run, to try the command out, warms up for half of it at most.
        warmup_steps = min(options.warmup_steps, steps // 2)
        options = replace(options, steps=steps, warmup_steps=warmup_steps)
    command = f"paligemma train codec --output {output.name} --steps {options.steps} --seed {seed}"
    record = train_codec_file(output, options, command=command, progress=not quiet)
    click.echo(f"wrote {output}: IoU {record['heldout']['all']['iou']:.3f} on held-out masks")


@train_group.command("tokenizer")
@click.option(
    "--output",
    type=NamedPath(dir_okay=False),
    default=Path("runs/tokenizer.model"),
    show_default=True,
    help="File to write.",
)
@overwrite_option
@when_stopped("begins anew, as nothing was written")
def tokenizer_command(output: Path, overwrite: bool) -> None:
    """Train the small tokenizer on prompts and answers of drawn pictures; takes half a minute."""
    from paligemma.tiny.start import make_tokenizer

    require_free(output, overwrite=overwrite)
    make_tokenizer(output)
    click.echo(f"wrote {output}")
