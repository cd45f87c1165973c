"""`paligemma plan batch`: what labelling so many pictures would take."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.show import echo_json
from paligemma.errors import ConfigError

if TYPE_CHECKING:
    from paligemma.bench.batch_costs import RowCost

_MAX_ROWS = 10**12


class Count(click.ParamType):
    """A whole number that may be written 1e9 or 1_000_000."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, checked."""
        try:
            number = float(str(value).replace("_", "").replace(",", ""))
            if not 1 <= number <= _MAX_ROWS or number != int(number):
                raise ValueError
        except ValueError:
            self.fail(f"{value!r:.40} is no whole number from 1 to 1e12", param, ctx)
        return int(number)


@click.command("batch")
@click.option(
    "--images", required=True, type=Count(), metavar="N", help="Rows of the whole, such as 1e9."
)
@click.option(
    "--pilot",
    "pilots",
    type=NamedPath(file_okay=False),
    multiple=True,
    metavar="DIR",
    help="Folder of a small run of `paligemma batch`, whose figures are taken; several are "
    "compared.",
)
@click.option("--model", metavar="MODEL", help="With --gpu: a model, which need not be here.")
@click.option("--gpu", metavar="CARD", help="With --model: estimate for a card, such as H100.")
@click.option("--quant", metavar="NAME", help="With --gpu: weights in fewer bits.")
@click.option(
    "--processes",
    "--workers",
    "workers",
    type=click.IntRange(1, 10**6),
    help="Models at once, as of `paligemma batch`; those of the pilot, or 1. --workers is its "
    "former name.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="With --gpu: rows asked at once.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1, 8192),
    default=16,
    show_default=True,
    help="With --gpu: tokens of a prompt.",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(1, 8192),
    default=24,
    show_default=True,
    help="With --gpu: tokens of an answer.",
)
@click.option(
    "--megapixels", type=click.FloatRange(0.001, 1000), default=1.0, show_default=True,
    help="With --gpu: size of a stored picture.",
)  # fmt: skip
@click.option(
    "--part-rows", type=click.IntRange(1, 10**6), default=256, show_default=True,
    help="Rows of a file of labels, as of `paligemma batch`.",
)  # fmt: skip
@click.option(
    "--picture-bytes",
    type=click.FloatRange(0, 1e12),
    help="Size of a stored picture, for what is read.",
)
@click.option("--rate", type=click.FloatRange(0, 1e6), help="Price of an hour of a worker.")
@click.option(
    "--hours-to-loss", type=click.FloatRange(min=0, min_open=True), default=1000.0,
    show_default=True, help="Mean hours until a machine is lost.",
)  # fmt: skip
@click.option(
    "--workers-each",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Workers of a machine.",
)
@click.option(
    "--stragglers", type=click.FloatRange(0, 1), default=0.01, show_default=True,
    help="Share of parts that are slow.",
)  # fmt: skip
@click.option(
    "--slowdown", type=click.FloatRange(1), default=4.0, show_default=True,
    help="How many times as long these take.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulation.")
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def plan_batch(
    *,
    images: int,
    pilots: tuple[Path, ...],
    model: str | None,
    gpu: str | None,
    workers: int | None,
    part_rows: int,
    picture_bytes: float | None,
    rate: float | None,
    seed: int,
    as_json: bool,
    quant: str | None,
    batch_size: int,
    prompt_tokens: int,
    answer_tokens: int,
    megapixels: float,
    **fleet: Any,
) -> None:
    """Say what labelling N rows takes: hours, money, storage, failures.

    \b
    paligemma plan batch --images 1e9 --model google/paligemma2-3b-mix-448 --gpu H100 \\
        --processes 64 --rate 2.5
    paligemma plan batch --images 1e6 --pilot labels --processes 8

    The surest figures are those of a pilot: `paligemma batch --limit 512 --part-rows 32` on the
    machines, with the model and options of the whole. Without one, a card is estimated. Slow parts
    and lost machines are simulated.
    """
    from paligemma.bench.batch_costs import read_pilot
    from paligemma.bench.batch_plan import Fleet, forecast, forecast_lines

    if bool(pilots) == (model is not None and gpu is not None):
        raise ConfigError(
            "a plan takes either --pilot DIR, or --model and --gpu; state one of them"
        )
    if pilots and any(one is not None for one in (model, gpu, quant)):
        raise ConfigError(
            "--model, --gpu and --quant estimate a card, and --pilot has what was measured; leave "
            "either out"
        )
    numbers = {"--rate": rate, "--picture-bytes": picture_bytes, "--megapixels": megapixels}
    for name, value in numbers.items():
        if value is not None and math.isnan(value):  # which no range of click's refuses
            raise ConfigError(f"{name} takes finite numbers, got {value}")
    costs: list[tuple[str, RowCost, int]] = []
    for path in pilots:
        one = read_pilot(path)
        name = f"{one.model}, {one.image_size_px} px, batch {one.batch_size}"
        costs.append((name, one.cost, one.num_workers))
    if model is not None and gpu is not None:
        cost = _estimated(
            model,
            gpu,
            quant,
            batch_size=batch_size,
            num_prompt=prompt_tokens,
            num_answer=answer_tokens,
            megapixels=megapixels,
        )
        costs.append((f"{model}, batch {batch_size}", cost, 1))
    shown = []
    for name, cost, measured in costs:
        of_plan = Fleet(num_workers=workers or measured, part_rows=min(part_rows, images), **fleet)
        found = forecast(images, cost, of_plan, seed)
        if as_json:
            money = None if rate is None else found.worker_hours * rate
            body = {"name": name, "rows": images, "money": money, **dataclasses.asdict(found)}
            body["written_bytes"] = images * cost.label_bytes
            body["read_bytes"] = None if picture_bytes is None else images * picture_bytes
            shown.append({**body, "cost": dataclasses.asdict(cost)})
            continue
        click.echo(f"{'of':16} {name}")
        for line in forecast_lines(
            images, cost, of_plan, found, rate=rate, picture_bytes=picture_bytes
        ):
            click.echo(line)
        click.echo()
    if as_json:
        echo_json({"plans": shown})


def _estimated(model: str, gpu: str, quant: str | None, **asked: Any) -> RowCost:
    from paligemma.adapt.quant import Quant
    from paligemma.bench.batch_costs import card_cost
    from paligemma.tuning.plan import CARDS, config_of

    wanted = gpu.lower()
    named = [name for name in CARDS if name == wanted or name.split("-")[0] == wanted]
    if len(named) != 1:
        raise ConfigError(
            f"a card must be one of {', '.join(named or CARDS)}, got {gpu!r:.80}; name one of them"
        )
    parsed = None if quant is None else Quant.parse(quant)
    flops = CARDS[named[0]].flops
    return card_cost(config_of(model), card=named[0], flops=flops, quant=parsed, **asked)
