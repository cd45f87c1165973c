"""The options of `paligemma train` itself: fine-tuning on rows of a user."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.stopping import when_stopped


class PartValue(click.ParamType):
    """A part, or a pattern of parameters, with a number: PART=NUMBER."""

    name = "part=number"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, float]:
        """Split at the last equals sign."""
        part, _, number = str(value).rpartition("=")
        try:
            return part or self.fail("", param, ctx), float(number)
        except (ValueError, click.BadParameter):
            self.fail(f"a part and its number are joined by =, as in vision=0.1, got {value!r}")


_OPTIONS = (
    click.option("--data", type=NamedPath(), metavar="DIR", help="Folder, or file of rows."),
    click.option(
        "--mixture",
        type=NamedPath(dir_okay=False),
        metavar="FILE",
        help="Several sets with weights, in the place of --data: .yaml, .toml or .json.",
    ),
    click.option(
        "--model",
        envvar="PALIGEMMA_MODEL",
        default="tiny",
        show_default=True,
        metavar="MODEL",
        help="Model to begin with.",
    ),
    click.option(
        "--output",
        type=NamedPath(file_okay=False),
        metavar="DIR",
        help="Folder of the run; runs/NAME-OF-DATA by default.",
    ),
    click.option(
        "--task", metavar="NAME", help="A benchmark of `eval list`; your own rows by default."
    ),
    click.option("--lora/--full", default=None, help="An adapter (default), or the model itself."),
    click.option("--rank", type=int, metavar="R", help="Width of the adapter; 16 by default."),
    click.option("--alpha", type=float, metavar="A", help="Its strength; 2 x R by default."),
    click.option(
        "--parts",
        metavar="LIST",
        help="What it changes: decoder, vision, projector, decoder.attention, decoder.mlp, "
        "vision.attention, vision.mlp; with commas between. decoder by default.",
    ),
    click.option(
        "--train-tokens",
        metavar="LIST",
        help="Also learn these rows of the embedding table: loc, seg, or both.",
    ),
    click.option("--dora", is_flag=True, help="Learn norms apart from directions (DoRA)."),
    click.option("--rslora", is_flag=True, help="Scale by the root of the rank (rsLoRA)."),
    click.option(
        "--quantize",
        "quant",
        metavar="NAME",
        help="Keep the layers under an adapter in four bits: nf4, or nf4:decoder,vision.",
    ),
    click.option(
        "--freeze",
        multiple=True,
        metavar="PART",
        help="With --full: what stays as it is, such as vision or projector; repeatable.",
    ),
    click.option(
        "--epochs", type=float, metavar="N", help="Times every row is seen; 5 by default."
    ),
    click.option("--steps", type=int, metavar="N", help="Updates, in the place of epochs."),
    click.option("--batch-size", type=int, metavar="N", help="Rows an update; 8 by default."),
    click.option(
        "--micro-size", type=int, metavar="N", help="Rows computed at once; all by default."
    ),
    click.option(
        "--checkpointing", is_flag=True, default=None, help="Less memory, a third more time."
    ),
    click.option(
        "--lr", type=float, metavar="X", help="Peak learning rate; 2e-4, with --full 1e-5."
    ),
    click.option("--wd", type=float, metavar="X", help="Weight decay a step; 0 by default."),
    click.option(
        "--lr-of",
        "lr_mults",
        type=PartValue(),
        multiple=True,
        metavar="PART=FACTOR",
        help="Factor on the learning rate of a part, such as vision=0.1; repeatable.",
    ),
    click.option(
        "--warmup-of",
        "warmups",
        type=PartValue(),
        multiple=True,
        metavar="PART=SHARE",
        help="Share of the run over which the learning rate of a part rises; repeatable.",
    ),
    click.option(
        "--warmup",
        "warmup_percent",
        type=float,
        metavar="SHARE",
        help="Share of the run over which the learning rate rises; 0.05 by default.",
    ),
    click.option(
        "--rule", metavar="NAME", help="adam (default), adam8bit, adafactor, momentum or sgd."
    ),
    click.option(
        "--average", type=float, metavar="DECAY", help="Keep a moving average of what is trained."
    ),
    click.option("--mean", metavar="NAME", help="Of the loss: example (default) or token."),
    click.option(
        "--compute", metavar="NAME", help="Products in float32 or bfloat16 (default on a GPU)."
    ),
    click.option("--label-smoothing", type=float, metavar="X", help="0 by default."),
    click.option("--dropout", type=float, metavar="P", help="Of the decoder; 0 by default."),
    click.option(
        "--order",
        metavar="NAME",
        help="Of objects in an answer: file (default), yx (top left first), random.",
    ),
    click.option(
        "--augment",
        metavar="LIST",
        help="Drawn changes of pictures; boxes and masks move along: flip, crop, zoom-out, colour, "
        "jpeg, resize, each perhaps with a strength (crop=0.7); with commas between.",
    ),
    click.option(
        "--negatives",
        type=float,
        metavar="SHARE",
        help="Visits in which classes are asked for that are not in the picture; 0 by default.",
    ),
    click.option(
        "--text-len",
        type=int,
        metavar="N",
        help="Most tokens of prompt and answer; 512 for own rows.",
    ),
    click.option(
        "--noise-piece",
        metavar="TEXT",
        help="Class of noise boxes, where all classes are asked for; <noise> by default.",
    ),
    click.option(
        "--eval-every",
        type=float,
        metavar="N",
        help="Updates between two looks at the held-out rows, or a share of the run below 1; 0.25 "
        "by default. 0 looks before and after alone.",
    ),
    click.option(
        "--patience",
        type=int,
        metavar="N",
        help="End after N looks without a better one, and keep the best.",
    ),
    click.option(
        "--keep", metavar="NAME", help="What counts: last (default without --patience) or best."
    ),
    click.option(
        "--overfit",
        type=int,
        metavar="N",
        help="Learn N rows by heart, to see that everything fits; exit 1 unless their answers are "
        "exact once saved, merged and loaded again.",
    ),
    click.option("--seed", type=int, metavar="S", help="Fixes everything drawn; 0 by default."),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with a run, and refuse to begin one; without it, the same command does either.",
    ),
    click.option(
        "--init-from",
        type=NamedPath(),
        metavar="DIR",
        help="Begin with the weights of a run, an adapter or a model, with a new optimiser.",
    ),
    click.option(
        "--extend",
        is_flag=True,
        help="Let the finished run become a longer one: more --steps or --epochs.",
    ),
    click.option("--device", metavar="NAME", help="By default cuda if there is one, else cpu."),
    click.option("--threads", type=click.IntRange(1, 256), help="CPU threads."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)
_LORA_ONLY = {
    "rank": "--rank",
    "alpha": "--alpha",
    "parts": "--parts",
    "train_tokens": "--train-tokens",
}
_RECIPE = (
    "quant",
    "epochs",
    "steps",
    "batch_size",
    "micro_size",
    "checkpointing",
    "lr",
    "wd",
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
    "seed",
)
TRANSFER = "transfer:"


class TrainGroup(click.Group):
    """A group that also knows `transfer:NAME`: a published recipe, with the group's own options."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of a name."""
        if not cmd_name.startswith(TRANSFER):
            return super().get_command(ctx, cmd_name)

        @finetune_options
        def train_transfer(**values: Any) -> None:
            run_finetune(transfer=cmd_name.removeprefix(TRANSFER), **values)

        name = cmd_name.removeprefix(TRANSFER)
        return click.command(cmd_name, help=f"Train the published transfer {name}.")(train_transfer)


def finetune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a fine-tuning to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@when_stopped("goes on where it stopped")
def run_finetune(
    *,
    data: Path | None,
    mixture: Path | None,
    model: str,
    output: Path | None,
    task: str | None,
    lora: bool | None,
    rank: int | None,
    alpha: float | None,
    parts: str | None,
    train_tokens: str | None,
    dora: bool,
    rslora: bool,
    freeze: tuple[str, ...],
    device: str | None,
    threads: int | None,
    quiet: bool,
    transfer: str | None = None,
    **numbers: Any,
) -> None:
    """Run a fine-tuning and print the figures before and after."""
    if data is None and mixture is None:
        raise click.UsageError(
            "a fine-tuning needs --data or --mixture; to make the embedded model name a "
            "subcommand: tiny, codec or tokenizer"
        )
    given = {"rank": rank, "alpha": alpha, "parts": parts, "train_tokens": train_tokens}
    idle = [_LORA_ONLY[name] for name, value in given.items() if value is not None]
    idle += [name for name, is_set in (("--dora", dora), ("--rslora", rslora)) if is_set]
    if transfer is not None and lora is None:
        lora = bool(idle)
    lora = True if lora is None else lora
    if idle and not lora:
        raise click.UsageError(f"{' and '.join(idle)} are of an adapter; leave --full out")
    init_from = numbers["init_from"]
    if idle and init_from is not None:
        raise click.UsageError(
            f"the adapter of --init-from keeps its shape; leave {' and '.join(idle)} out"
        )
    import torch

    from paligemma.adapt.lora import LoraConfig
    from paligemma.tasks.own.hub_set import is_hub_set
    from paligemma.tuning.finetune import finetune

    if threads is not None:
        torch.set_num_threads(threads)
    config = None
    if lora:
        rank = 16 if rank is None else rank
        config = LoraConfig(
            rank=rank,
            alpha=2.0 * rank if alpha is None else alpha,
            parts=tuple(part.strip() for part in (parts or "decoder").split(",")),
            token_rows=tuple(kind.strip() for kind in (train_tokens or "").split(",") if kind),
            rank_stabilised=rslora,
            dora=dora,
        )
    stated: dict[str, Any] = {
        name: numbers[name] for name in _RECIPE if numbers[name] not in (None, ())
    }
    if (augment := numbers["augment"]) is not None:
        stated["augment"] = tuple(word.strip() for word in augment.split(",") if word.strip())
    if freeze:
        stated["freeze"] = freeze
    if (every := numbers["eval_every"]) is not None:
        stated["eval_every"] = every or None
    rows = data or mixture
    assert rows is not None
    name = rows.stem if rows.suffix else rows.resolve().name
    if is_hub_set(rows):
        name = rows.name.partition("@")[0]
    if numbers["overfit"] is not None:
        name += "-overfit"
    run = finetune(
        model,
        data=data,
        mixture=mixture,
        output=output or Path("runs") / name,
        task=task,
        transfer=transfer,
        device=device,
        progress=not quiet,
        resume=numbers["resume"],
        init_from=init_from,
        extend=numbers["extend"],
        lora=bool(lora) if init_from is not None else config,
        **stated,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    if run.figures:
        width = max(len(one.name) for one in run.figures)
        click.echo(f"{'on held-out rows':{width}}  before   after")
        for one in run.figures:
            click.echo(f"{one.name:{width}}  {one.before:6.1f}  {one.after:6.1f}")
    click.echo(f"report: {run.report}")
    if config is None:
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
    if numbers["overfit"] is not None:
        click.echo("learnt by heart: every answer is exact after saving, merging and loading")
