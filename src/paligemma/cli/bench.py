"""`paligemma bench`: how fast a model answers on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import DEFAULT_MODEL
from paligemma.cli.show import echo_json

if TYPE_CHECKING:
    from paligemma.model import PaliGemmaModel


def _sizes(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    sizes = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 256 for part in sizes):
        raise click.BadParameter(f"sizes of batches are numbers in 1..256, got {value!r:.100}")
    return tuple(sorted({int(part) for part in sizes}))


@click.command("bench")
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--quant", metavar="NAME", help="Weights in fewer bits, as for the other commands.")
@click.option(
    "--random", "is_random", is_flag=True, help="The shapes of a published MODEL, random weights."
)
@click.option("--image-size", type=click.IntRange(1, 4096), metavar="PX")
@click.option(
    "--batch", "batches", default="1", callback=_sizes, metavar="N,N", help="Rows decoded at once."
)
@click.option("--prompt-tokens", type=click.IntRange(1, 8192), default=10, show_default=True)
@click.option("--tokens", type=click.IntRange(1, 4096), default=16, show_default=True)
@click.option("--repetitions", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1, 256), help="As many as torch has by default.")
@click.option("--kv-cache", type=click.Choice(["bfloat16", "float32"]), default="bfloat16")
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def bench(
    model: str,
    quant: str | None,
    is_random: bool,
    image_size: int | None,
    batches: tuple[int, ...],
    prompt_tokens: int,
    tokens: int,
    repetitions: int,
    threads: int | None,
    kv_cache: str,
    as_json: bool,
) -> None:
    """Measure how fast MODEL answers here: first token, tokens a second, memory.

    \b
    paligemma bench
    paligemma bench google/paligemma-3b-pt-224 --random --quant int4 --batch 1,8
    paligemma bench ./my-model --quant int8 --json

    Medians of all repetitions. Beside them stands how much of the memory's bandwidth and of the
    processor's products, both measured in the same minute, was reached. Random pixels and ids are
    asked; the answers do not matter.
    """
    import torch

    from paligemma.bench import machine, report
    from paligemma.bench.measure import BenchOptions, measure

    if threads is not None:
        torch.set_num_threads(threads)
    options = BenchOptions(
        num_prompt=prompt_tokens,
        num_new=tokens,
        batches=batches,
        repetitions=repetitions,
        kv_cache_dtype=kv_cache,
    )
    loaded, load_s, kind = _load(model, quant, is_random, image_size)
    figures = measure(loaded, options, kind=kind, on_progress=_progress)
    _progress("")
    body: dict[str, Any] = {
        "model": model,
        "random": is_random,
        "quant": quant,
        "load_s": load_s,
        "decoding": loaded.decode_route(),
        "machine": machine.describe(),
        **figures.to_json(),
    }
    if as_json:
        echo_json(body)
        return
    click.echo(
        f"{model}{' with random weights' * is_random}, {quant or kind}, {load_s:.1f} s to load"
    )
    click.echo(report.table(figures, body["machine"]))
    click.echo(f"decoding: {body['decoding']}")
    if len(batches) > 1:
        click.echo(report.plot(figures))


def _load(
    name: str, quant: str | None, is_random: bool, image_size: int | None
) -> tuple[PaliGemmaModel, float, str]:
    """The model, how long it took in seconds, and the kind of its weights."""
    import time

    import torch

    from paligemma.adapt.quant import Quant

    start = time.perf_counter()
    parsed = None if quant is None else Quant.parse(quant)
    if is_random:
        from paligemma.bench.random_model import random_config, random_model

        model = random_model(random_config(name, image_size), quant=parsed, dtype=torch.bfloat16)
    else:
        from paligemma.pipeline.paligemma import PaliGemma

        stated = {"quant": quant, "image_size_px": image_size}
        keywords: Any = {key: value for key, value in stated.items() if value is not None}
        model = PaliGemma.from_pretrained(name, **keywords).model
    kind = str(model.dtype).removeprefix("torch.") if parsed is None else parsed.kind
    return model, time.perf_counter() - start, kind


def _progress(words: str) -> None:
    """One line that is written over, for a person who waits."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{words}", nl=False, err=True)
