"""`paligemma train` itself and its recipes: what the options say, as a call of `finetune`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from paligemma.cli.finetune_options import SECTIONS, finetune_options
from paligemma.cli.retriever import NAME as RETRIEVER
from paligemma.cli.retriever import retriever_command
from paligemma.cli.sections import SectionedCommand, SectionedGroup
from paligemma.cli.stopping import when_stopped

_LORA_ONLY = {
    "rank": "--rank",
    "alpha": "--alpha",
    "lora_dropout": "--lora-dropout",
    "parts": "--parts",
    "train_tokens": "--train-tokens",
}
_RECIPE = (
    "quant",
    "epochs",
    "steps",
    "batch_size",
    "micro_size",
    "batch_tokens",
    "checkpointing",
    "lr",
    "wd",
    "schedule",
    "timescale",
    "schedule_start",
    "lr_mults",
    "warmups",
    "warmup_percent",
    "rule",
    "average",
    "mean",
    "compute",
    "label_smoothing",
    "dropout",
    "order",
    "negatives",
    "text_len",
    "noise_piece",
    "patience",
    "keep",
    "overfit",
    "size_px",
    "replay",
    "seed",
)
TRANSFER = "transfer:"
STAGES = ("stage1", "stage2a", "stage2b")


class TrainGroup(SectionedGroup):
    """A group that also knows stages of pre-training, and `transfer:NAME`: published recipes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names to complete, and those that may have been meant."""
        return [*super().list_commands(ctx), *STAGES, f"{TRANSFER}{RETRIEVER}"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of a name."""
        if cmd_name in STAGES:
            return _stage_command(cmd_name)
        if not cmd_name.startswith(TRANSFER):
            return super().get_command(ctx, cmd_name)
        if cmd_name == f"{TRANSFER}{RETRIEVER}":
            return retriever_command()

        @finetune_options
        def train_transfer(**values: Any) -> None:
            run_finetune(transfer=cmd_name.removeprefix(TRANSFER), **values)

        from paligemma.tasks.published import transfer_recipe

        name = cmd_name.removeprefix(TRANSFER)
        transfer_recipe(name)  # one that is misspelt is named before any option
        return _command(cmd_name, f"Train the published transfer {name}.")(train_transfer)


def _stage_command(name: str) -> click.Command:
    from paligemma.tuning.stages import recipe_lines

    @finetune_options
    def train_stage(**values: Any) -> None:
        run_finetune(**{**values, "recipe": name})

    table = "\n".join(recipe_lines(name))
    help_text = (
        f"Train {name} of pre-training on a mixture. Values and their sources; options replace "
        f"them:\n\n\b\n{table}"
    )
    return _command(name, help_text)(train_stage)


def _command(name: str, help_text: str) -> Callable[..., click.Command]:
    return click.command(name, cls=SectionedCommand, sections=SECTIONS, help=help_text)


def stated_recipe(
    *,
    follows_published: bool,
    lora: bool | None,
    rank: int | None,
    alpha: float | None,
    lora_dropout: float | None,
    parts: str | None,
    train_tokens: str | None,
    dora: bool,
    rslora: bool,
    freeze: tuple[str, ...],
    **numbers: Any,
) -> dict[str, Any]:
    """The keywords of `Recipe` that options of the command state.

    Args:
        follows_published: whether a published recipe, which trains whole models, is followed.

    Raises:
        click.UsageError: options that exclude each other.
    """
    given = {
        "rank": rank,
        "alpha": alpha,
        "lora_dropout": lora_dropout,
        "parts": parts,
        "train_tokens": train_tokens,
    }
    idle = [_LORA_ONLY[name] for name, value in given.items() if value is not None]
    idle += [name for name, is_set in (("--dora", dora), ("--rslora", rslora)) if is_set]
    if follows_published and lora is None:
        lora = bool(idle)
    lora = True if lora is None else lora
    if idle and not lora:
        raise click.UsageError(f"{' and '.join(idle)} are of an adapter; leave --full out")
    from_run = numbers.get("init_from") is not None
    if idle and from_run:
        raise click.UsageError(
            f"the adapter of --init-from keeps its shape; leave {' and '.join(idle)} out"
        )
    from paligemma.adapt.lora import LoraConfig

    config = None
    if lora:
        rank = 16 if rank is None else rank
        parts = "decoder" if parts is None else parts
        config = LoraConfig(
            rank=rank,
            alpha=2.0 * rank if alpha is None else alpha,
            dropout=lora_dropout or 0.0,
            parts=tuple(
                part.strip() for part in ("decoder" if parts is None else parts).split(",")
            ),
            token_rows=tuple(kind.strip() for kind in (train_tokens or "").split(",") if kind),
            rank_stabilised=rslora,
            dora=dora,
        )
    stated: dict[str, Any] = {
        name: numbers[name] for name in _RECIPE if numbers.get(name) not in (None, ())
    }
    if (augment := numbers.get("augment")) is not None:
        stated["augment"] = tuple(word.strip() for word in augment.split(",") if word.strip())
    if freeze:
        stated["freeze"] = freeze
    if (every := numbers.get("eval_every")) is not None:
        stated["eval_every"] = every or None
    return {"lora": lora if from_run else config, **stated}


@when_stopped("goes on where it stopped")
def run_finetune(
    *,
    data: Path | None,
    mixture: Path | None,
    model: str,
    output: Path | None,
    task: str | None,
    recipe: str | None,
    device: str | None,
    threads: int | None,
    quiet: bool,
    transfer: str | None = None,
    **options: Any,
) -> None:
    """Run a fine-tuning and print the figures before and after."""
    if data is None and mixture is None:
        raise click.UsageError(
            "a fine-tuning needs --data or --mixture; to make the embedded model name a "
            "subcommand: tiny, codec or tokenizer"
        )
    stated = stated_recipe(follows_published=bool(transfer or recipe), **options)
    import torch

    from paligemma.tasks.own.hub_set import is_hub_set
    from paligemma.tuning.finetune import finetune

    if threads is not None:
        torch.set_num_threads(threads)
    rows = data or mixture
    assert rows is not None
    name = rows.stem if rows.suffix else rows.resolve().name
    if is_hub_set(rows):
        name = rows.name.partition("@")[0]
    if options["overfit"] is not None:
        name += "-overfit"
    run = finetune(
        model,
        data=data,
        mixture=mixture,
        output=output or Path("runs") / name,
        task=task,
        transfer=transfer,
        recipe=recipe,
        device=device,
        progress=not quiet,
        hang_after=options["hang_after"],
        save=options["save"],
        parallel=options["parallel"],
        resume=options["resume"],
        init_from=options["init_from"],
        extend=options["extend"],
        log_to=options["log_to"],
        **stated,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    if not run.updates:
        click.echo("nothing was left to train: the run had ended, and this is its result")
    if run.figures:
        width = max(len(one.name) for one in run.figures)
        click.echo(f"{'on held-out rows':{width}}  before   after")
        for one in run.figures:
            click.echo(f"{one.name:{width}}  {one.before:6.1f}  {one.after:6.1f}")
    click.echo(f"report: {run.report}")
    if not stated["lora"]:
        click.echo(f"wrote {run.result}; try: paligemma run IMAGE PROMPT --model {run.result}")
    else:
        click.echo(
            f"wrote {run.result}; try: paligemma run IMAGE PROMPT --model {model} "
            f"--adapter {run.folder}"
        )
    if run.inexact:
        for sentence in run.inexact:
            click.echo(f"paligemma: {sentence}", err=True)
        click.get_current_context().exit(1)
    if options["overfit"] is not None:
        click.echo("learnt by heart: every answer is exact after saving, merging and loading")
