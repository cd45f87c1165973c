"""`paligemma plan`: what a fine-tuning would need, before anything is downloaded or run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from paligemma.cli.finetune import stated_recipe
from paligemma.cli.finetune_options import finetune_options
from paligemma.cli.plan_batch import plan_batch

# Options of a training that change what it needs.
_SHARED = (
    *(
        "model",
        "lora",
        "rank",
        "alpha",
        "lora_dropout",
        "parts",
        "train_tokens",
        "dora",
        "rslora",
        "quant",
    ),
    *("freeze", "epochs", "steps", "batch_size", "micro_size", "checkpointing", "rule", "average"),
    "compute",
)


def _shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `train` that a plan takes."""

    @finetune_options
    def every() -> None:
        pass

    params = [one for one in every.__click_params__ if one.name in _SHARED]  # type: ignore[attr-defined]
    command.__click_params__ = [*getattr(command, "__click_params__", []), *params]  # type: ignore[attr-defined]
    return command


@click.group("plan", invoke_without_command=True)
@click.pass_context
@click.option("--transfer", metavar="NAME", help="Take the recipe of a published transfer.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Rows of the data, for updates.")
@click.option(
    "--text-len",
    type=click.IntRange(2, 8192),
    default=128,
    show_default=True,
    help="Tokens of a row's prompt and answer.",
)
@click.option(
    "--answer-len",
    type=click.IntRange(1, 8192),
    help="Tokens of its answer; a quarter of --text-len by default.",
)
@click.option(
    "--processes", type=click.IntRange(1, 65_536), default=1, show_default=True, help="Of torchrun."
)
@click.option(
    "--parallel", metavar="NAME", help="replicate (default with --lora) or shard (with --full)."
)
@click.option("--card", metavar="NAME", help="One GPU of the table alone, such as h100-80.")
@_shared_options
def plan_command(
    ctx: click.Context,
    *,
    transfer: str | None,
    rows: int | None,
    text_len: int,
    answer_len: int | None,
    processes: int,
    parallel: str | None,
    card: str | None,
    model: str,
    **options: Any,
) -> None:
    """Say what a training needs: what is trained, memory by part, rows that fit, time.

    \b
    paligemma plan --model google/paligemma2-10b-pt-448 --quantize nf4 --rows 5000
    paligemma plan --model google/paligemma2-28b-pt-896 --full --checkpointing --processes 8

    Published models are known by name, without their files. Memory is measured on a model without
    values that runs forward and backward, so it takes some seconds. `paligemma plan batch` says
    what labelling many pictures takes.
    """
    if ctx.invoked_subcommand is not None:
        return
    stated: Any = stated_recipe(follows_published=transfer is not None, **options)
    from paligemma.tuning.plan import plan_lines

    for line in plan_lines(
        model,
        stated,
        transfer=transfer,
        card=card,
        num_rows=rows,
        num_text=text_len,
        num_answer=answer_len or max(1, text_len // 4),
        processes=processes,
        parallel=parallel,
    ):
        click.echo(line)


plan_command.add_command(plan_batch)
