"""`paligemma train transfer:colpali`: teach a model to find pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.sections import ModelName, SectionedCommand, Sections
from paligemma.cli.stopping import when_stopped

NAME = "colpali"

_SECTIONS: Sections = {
    "Model and data": ("data", "model", "new_head", "preset", "output", "device", "quant"),
    "Loss": ("loss", "temperature", "normalisation", "num_negatives", "negatives_weight"),
    "Adapter and head": ("rank", "alpha", "lora_dropout", "dim"),
    "Updates": (
        "batch_size",
        "part_size",
        "epochs",
        "steps",
        "lr",
        "warmup_percent",
        "checkpointing",
        "compute",
        "seed",
        "threads",
        "quiet",
    ),
}

_OPTIONS = (
    click.option(
        "--data",
        type=NamedPath(),
        required=True,
        metavar="PATH",
        help="File of pairs, or a folder with train.jsonl and perhaps valid.jsonl; parquet too.",
    ),
    click.option(
        "--model",
        envvar="PALIGEMMA_MODEL",
        type=ModelName(),
        default="tiny",
        show_default=True,
        metavar="MODEL",
        help="ColPali to begin with; with --new-head any PaliGemma.",
    ),
    click.option("--new-head", is_flag=True, help="Draw the projection instead of loading it."),
    click.option("--preset", metavar="NAME", help="Prompts; those of the model by default."),
    click.option(
        "--output",
        type=NamedPath(file_okay=False),
        metavar="DIR",
        help="Folder of the run; runs/colpali-NAME-OF-DATA by default.",
    ),
    click.option("--device", metavar="NAME", help="cpu or cuda; the fastest by default."),
    click.option(
        "--quantize", "--quant", "quant", metavar="NAME", help="Keep frozen layers in nf4."
    ),
    click.option("--loss", metavar="NAME", help="pairwise or contrastive."),
    click.option("--temperature", type=float, metavar="T", help="1 pairwise, 0.02 contrastive."),
    click.option(
        "--normalisation", metavar="NAME", help="Scores by the query's length: length or none."
    ),
    click.option("--num-negatives", type=int, metavar="N", help="Hard negatives shown a query."),
    click.option("--negatives-weight", type=float, metavar="W", help="Their share of the loss."),
    click.option("--rank", type=int, metavar="R", help="Width of a new adapter."),
    click.option("--alpha", type=float, metavar="A", help="Its strength."),
    click.option("--lora-dropout", type=float, metavar="P", help="Of its inputs."),
    click.option("--dim", type=int, metavar="D", help="Width of the vectors of a new head."),
    click.option("--batch-size", type=int, metavar="N", help="Pairs compared with each other."),
    click.option(
        "--part-size", type=int, metavar="N", help="Of these, how many are in memory at once."
    ),
    click.option("--epochs", type=float, metavar="N", help="Times every pair is shown."),
    click.option("--steps", type=int, metavar="N", help="Updates, in the place of epochs."),
    click.option("--lr", type=float, metavar="X", help="Peak learning rate."),
    click.option("--warmup-percent", type=float, metavar="P", help="Share over which it rises."),
    click.option("--checkpointing", is_flag=True, help="Compute blocks again for gradients."),
    click.option("--compute", metavar="NAME", help="float32 or bfloat16."),
    click.option("--seed", type=int, metavar="N", help="Of new weights, order and dropout."),
    click.option("--threads", type=click.IntRange(1, 256), metavar="N", help="CPU threads."),
    click.option("--quiet", is_flag=True, help="No progress bar."),
)


def retriever_command() -> click.Command:
    """The command with its table of values."""
    from paligemma.tuning.retriever_recipe import recipe_lines

    table = "\n".join(recipe_lines())
    text = (
        "Teach a model to find pages: in-batch late interaction with hard negatives.\n\n"
        'Each line of the data is {"query": "how much did revenue grow?", "image": '
        '"pages/12.png", "negatives": ["pages/40.png"]}; negatives may be missing. The result is '
        "an adapter with its head, which `paligemma index add --model` takes. Values and their "
        f"sources; options replace them:\n\n\b\n{table}"
    )
    command: Any = _run
    for option in reversed(_OPTIONS):
        command = option(command)
    made = click.command(f"transfer:{NAME}", cls=SectionedCommand, sections=_SECTIONS, help=text)
    return made(command)


@when_stopped("goes on where it stopped")
def _run(
    *,
    data: Path,
    model: str,
    output: Path | None,
    new_head: bool,
    preset: str | None,
    device: str | None,
    quant: str | None,
    threads: int | None,
    quiet: bool,
    **numbers: Any,
) -> None:
    import torch

    from paligemma.tuning.retriever import train_retriever

    if threads is not None:
        torch.set_num_threads(threads)
    name = data.stem if data.suffix else data.resolve().name
    run = train_retriever(
        model,
        data=data,
        output=output or Path("runs") / f"{NAME}-{name}",
        preset=preset,
        new_head=new_head,
        device=device,
        quant=quant,
        progress=not quiet,
        **{key: value for key, value in numbers.items() if value is not None},
    )
    if run.before is not None and run.after is not None:
        click.echo(f"on {run.num_held_out} held-out pairs  before   after")
        click.echo(f"{'ndcg@5':>20}  {run.before * 100:6.1f}  {run.after * 100:6.1f}")
    click.echo(f"wrote {run.result}; try: paligemma index add FILES --model {run.result}")
