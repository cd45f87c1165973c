"""The options of a fine-tuning, as `paligemma train` and its recipes take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.sections import BenchmarkName, ModelName, Sections


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


class RateOrWord(click.ParamType):
    """A learning rate, or the word for one that was published."""

    name = "x"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | str:
        """Read a number; a word stays as it is."""
        try:
            return float(value)
        except ValueError:
            return str(value)


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
        type=ModelName(),
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
        "--task",
        type=BenchmarkName(),
        metavar="NAME",
        help="A benchmark of `eval list`; your own rows by default.",
    ),
    click.option(
        "--recipe",
        metavar="NAME",
        help="A table of values: simple, stage1, stage2a or stage2b; options replace single ones.",
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
    click.option(
        "--lora-dropout",
        type=float,
        metavar="P",
        help="Of the inputs of the adapter; 0 by default.",
    ),
    click.option("--dora", is_flag=True, help="Learn norms apart from directions (DoRA)."),
    click.option("--rslora", is_flag=True, help="Scale by the root of the rank (rsLoRA)."),
    click.option(
        "--quantize",
        "--quant",
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
        "--batch-tokens",
        type=int,
        metavar="N",
        help="Tokens computed at once, with those of pictures and padding.",
    ),
    click.option(
        "--parallel",
        metavar="NAME",
        help="Of several processes: replicate (default with --lora) or shard (with --full).",
    ),
    click.option(
        "--hang-after",
        type=click.FloatRange(0.1),
        default=1800.0,
        metavar="S",
        help="Seconds after which a step that hangs ends the run; 1800 by default.",
    ),
    click.option(
        "--save",
        metavar="NAME",
        default="background",
        help="Checkpoints: background (default; a copy in the host's memory) or inline.",
    ),
    click.option(
        "--checkpointing", is_flag=True, default=None, help="Less memory, a third more time."
    ),
    click.option(
        "--lr",
        type=RateOrWord(),
        metavar="X",
        help="Peak learning rate; 2e-4, with --full 1e-5. `published`, beside transfer:NAME: the "
        "best of PaliGemma 2's sweep for the model's size.",
    ),
    click.option(
        "--schedule",
        metavar="NAME",
        help="Of the learning rate: cosine (default), or rsqrt without end.",
    ),
    click.option(
        "--timescale", type=float, metavar="N", help="Updates of rsqrt; 10,000 by default."
    ),
    click.option(
        "--schedule-start",
        type=int,
        metavar="N",
        help="Updates of the schedule before this run, which goes on from there; 0 by default.",
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
        help="Share of the run, from 1 on updates, over which the learning rate of a part rises; "
        "repeatable.",
    ),
    click.option(
        "--warmup",
        "warmup_percent",
        type=float,
        metavar="SHARE",
        help="Share of the run, from 1 on updates, over which the learning rate rises; 0.05 by "
        "default.",
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
    click.option(
        "--size",
        "size_px",
        type=int,
        metavar="PX",
        help="Side of the pictures; the model's own by default.",
    ),
    click.option(
        "--replay",
        type=float,
        metavar="SHARE",
        help="Share of each batch that is the model's own answers from before, against forgetting.",
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
    click.option(
        "--log-to",
        multiple=True,
        metavar="NAME",
        help="Show metrics in tensorboard, trackio or wandb too; repeatable.",
    ),
    click.option("--device", metavar="NAME", help="By default cuda if there is one, else cpu."),
    click.option("--threads", type=click.IntRange(1, 256), help="CPU threads."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)


SECTIONS: Sections = {
    "Data, model and output": ("data", "mixture", "task", "model", "output", "recipe"),
    "What is trained": (
        "lora",
        "rank",
        "alpha",
        "parts",
        "train_tokens",
        "lora_dropout",
        "dora",
        "rslora",
        "quant",
        "freeze",
    ),
    "Length and batches": ("epochs", "steps", "batch_size", "micro_size", "batch_tokens"),
    "Learning rate and loss": (
        "lr",
        "schedule",
        "warmup_percent",
        "wd",
        "lr_mults",
        "warmups",
        "timescale",
        "schedule_start",
        "rule",
        "average",
        "mean",
        "label_smoothing",
        "dropout",
    ),
    "Examples": (
        "augment",
        "negatives",
        "order",
        "size_px",
        "text_len",
        "noise_piece",
        "replay",
        "seed",
    ),
    "Measuring on held-out rows": ("eval_every", "patience", "keep", "overfit"),
    "Going on": ("resume", "extend", "init_from", "save"),
    "Machine": ("device", "threads", "compute", "checkpointing", "parallel", "hang_after"),
    "Progress": ("log_to", "quiet"),
}


def finetune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a fine-tuning to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
