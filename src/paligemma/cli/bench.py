"""`paligemma bench`: how fast a model answers on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import DEFAULT_MODEL, NamedPath, overwrite_option
from paligemma.cli.sections import ModelName
from paligemma.cli.show import echo_json

if TYPE_CHECKING:
    from paligemma.bench.measure import BenchOptions
    from paligemma.bench.memory import Memory
    from paligemma.bench.subject import Subject
    from paligemma.bench.turns import Peer


_MAX_SIZES = 32


def _sizes(largest: int) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """A parser of numbers that are measured one after the other."""

    def parse(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
        sizes = [part.strip() for part in value.split(",")]
        if len(sizes) > _MAX_SIZES or not all(
            part.isascii() and part.isdecimal() and len(part) < 6 and 1 <= int(part) <= largest
            for part in sizes
        ):
            raise click.BadParameter(
                f"at most {_MAX_SIZES} numbers in 1..{largest} with commas between them, "
                f"got {value!r:.100}"
            )
        return tuple(sorted({int(part) for part in sizes}))

    return parse


def _cards(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Gigabytes of GPUs."""
    sizes = () if value is None else tuple(part.strip() for part in value.split(","))
    fine = all(size.isascii() and size.isdecimal() and 0 < int(size[:6]) < 10**5 for size in sizes)
    if len(sizes) > _MAX_SIZES or not fine:
        raise click.BadParameter(
            f"at most {_MAX_SIZES} whole numbers of gigabytes with commas between them, got "
            f"{value!r:.100}"
        )
    return tuple(int(size) for size in sizes)


@click.command("bench")
@click.argument("model", type=ModelName(), default=DEFAULT_MODEL)
@click.option("--quant", metavar="NAME", help="Weights in fewer bits, as for the other commands.")
@click.option(
    "--random", "is_random", is_flag=True, help="The shapes of a published MODEL, random weights."
)
@click.option(
    "--image-size",
    type=click.IntRange(1, 4096),
    metavar="PX",
    help="Another resolution than the model's.",
)
@click.option(
    "--batch",
    "batches",
    default="1",
    show_default=True,
    callback=_sizes(256),
    metavar="N,N",
    help="Rows decoded at once; three sizes or more show whether the cost grows linearly.",
)
@click.option(
    "--prompt-tokens",
    default="10",
    show_default=True,
    callback=_sizes(8192),
    metavar="N,N",
    help="Of the prompt; the least of several holds for everything but the first token.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Decoded after the first.",
)
@click.option(
    "--repetitions",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="How often everything is measured.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="As many as torch has by default.")
@click.option(
    "--kv-cache",
    type=click.Choice(["bfloat16", "float32", "int8"]),
    default="bfloat16",
    show_default=True,
    help="Precision of keys and values while decoding.",
)
@click.option(
    "--estimate", is_flag=True, help="Say how much memory it would take, and load nothing."
)
@click.option(
    "--cards",
    callback=_cards,
    metavar="GB,GB",
    help="With --estimate: how the model lies on GPUs that have so much free.",
)
@click.option(
    "--plot",
    type=NamedPath(),
    metavar="FILE.svg",
    help="Draw speed and growth over the sizes of --batch and --prompt-tokens.",
)
@click.option("--peer", type=click.Choice(["transformers", "llama.cpp"]), help="Compare in turns.")
@click.option(
    "--peer-python",
    type=NamedPath(),
    metavar="PATH",
    help="A Python that has the peer; this one by default.",
)
@click.option(
    "--peer-model",
    type=NamedPath(),
    help="GGUF file for llama.cpp; of transformers another folder than MODEL's.",
)
@click.option(
    "--peer-dtype",
    type=click.Choice(["bfloat16", "float32"]),
    help="In which transformers computes; that of MODEL's file by default.",
)
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@overwrite_option
def bench(
    model: str,
    quant: str | None,
    is_random: bool,
    image_size: int | None,
    batches: tuple[int, ...],
    prompt_tokens: tuple[int, ...],
    tokens: int,
    repetitions: int,
    threads: int | None,
    kv_cache: str,
    estimate: bool,
    cards: tuple[int, ...],
    plot: Path | None,
    peer: str | None,
    peer_python: Path | None,
    peer_model: Path | None,
    peer_dtype: str | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure how fast MODEL answers here: first token, tokens a second, memory.

    \b
    paligemma bench
    paligemma bench google/paligemma-3b-pt-224 --random --quant int4 --batch 1,8
    paligemma bench ./my-model --quant int8 --json
    paligemma bench google/paligemma2-28b-pt-224 --random --quant int4 --estimate
    paligemma bench google/paligemma2-28b-pt-224 --random --estimate --cards 40,40
    paligemma bench ./my-model --peer transformers --batch 1,8

    Medians of all repetitions. Beside them stands how much of the memory's bandwidth and of the
    processor's products, both measured in the same minute, was reached. Random pixels and ids are
    asked; the answers do not matter.
    """
    import time

    import torch

    from paligemma.bench import machine, report
    from paligemma.bench.measure import BenchOptions, measure
    from paligemma.bench.memory import require_room
    from paligemma.bench.plot import require_place, write_plot
    from paligemma.bench.subject import Subject
    from paligemma.bench.turns import Peer

    if peer is None and (peer_python or peer_model or peer_dtype):
        raise click.UsageError("--peer-python, --peer-model and --peer-dtype need --peer")
    if peer is not None and (len(prompt_tokens) > 1 or estimate):
        raise click.UsageError("--peer takes one number of --prompt-tokens, and no --estimate")
    if plot is not None:
        if peer is not None or estimate:
            raise click.UsageError("--plot goes with neither --peer nor --estimate")
        require_place(plot, overwrite=overwrite)
    if cards and not estimate:
        raise click.UsageError("--cards needs --estimate")
    if threads is not None:
        torch.set_num_threads(threads)
    options = BenchOptions(
        num_prompts=prompt_tokens,
        num_new=tokens,
        batches=batches,
        repetitions=repetitions,
        kv_cache_dtype=kv_cache,
    )
    subject = Subject(
        name=model,
        is_random=is_random,
        quant=quant,
        image_size_px=image_size,
        conventions="transformers" if peer == "transformers" else "big_vision",
    )
    memory = _memory(subject, options)
    if estimate:
        _show_estimate(subject, memory, cards, as_json)
        return
    if is_random or quant is not None:  # the files of a plain checkpoint are mapped, not read
        require_room(memory)
    if peer is not None:
        other = Peer(
            engine=peer,
            python=str(peer_python or sys.executable),
            model=peer_model,
            dtype=peer_dtype or subject.file_dtype,
        )
        _compare(subject, other, options, memory, as_json)
        return
    start = time.perf_counter()
    loaded = subject.load()
    load_s = time.perf_counter() - start
    title = f"{model}{' with random weights' * is_random}, {quant or subject.kind}"
    figures = measure(loaded, options, kind=subject.kind, on_progress=_progress)
    _progress("")
    if plot is not None:
        write_plot(figures, plot, heading=title)
    body: dict[str, Any] = {
        "model": model,
        "random": is_random,
        "quant": quant,
        "load_s": load_s,
        "decoding": loaded.decode_route(),
        "estimated_memory_gb": memory.total / 1e9,
        "machine": machine.describe(),
        **figures.to_json(),
    }
    if as_json:
        echo_json(body)
        return
    click.echo(f"{title}, {load_s:.1f} s to load")
    click.echo(report.table(figures, body["machine"]))
    click.echo(f"decoding: {body['decoding']}")


def _compare(
    subject: Subject, peer: Peer, options: BenchOptions, memory: Memory, as_json: bool
) -> None:
    """Print what was measured in turns, whatever failed."""
    from dataclasses import asdict

    from paligemma.bench import machine, report
    from paligemma.bench.turns import compare, summary
    from paligemma.errors import RunError

    made = compare(subject, peer, options, memory=memory, on_progress=_progress)
    _progress("")
    about = machine.describe()
    if as_json:
        rows = summary(made, options.batches)
        echo_json(
            {
                "subject": asdict(subject),
                "kind": subject.kind,
                "options": asdict(options),
                "machine": about,
                "summary": rows,
                **asdict(made),
                "peer": asdict(peer) | {"model": peer.model and str(peer.model)},
            }
        )
    else:
        drawn = " with random weights" * subject.is_random
        click.echo(f"{subject.name}{drawn}, {subject.quant or subject.kind}, beside {peer.engine}")
        click.echo(report.comparison_table(made, options, about))
    for engine, why in made.failures.items():
        raise RunError(f"{engine} failed {why}; what was measured is above")


def _memory(subject: Subject, options: BenchOptions) -> Memory:
    from paligemma.bench.memory import estimate
    from paligemma.generate.options import KV_CACHE_DTYPES

    return estimate(
        subject.config,
        quant=subject.parsed_quant,
        dtype=subject.dtype,
        num_tokens=max(options.num_prompts) + options.num_new,
        num_rows=max(options.batches),
        cache_dtype=KV_CACHE_DTYPES[options.kv_cache_dtype],
    )


def _show_cards(subject: Subject, memory: Memory, cards: tuple[int, ...], as_json: bool) -> None:
    """What lies on each GPU; cache and working memory are counted whole on each, so at most."""
    from paligemma.bench.memory import on_cards

    rows = [
        {
            "card": number,
            "holds": ("all but the blocks, " if number == 0 else "") + str(card),
            "weights_gb": card.weights / 1e9,
            "beside_them_gb": memory.answering / 1e9,
            "room_gb": room,
            "fits": card.weights + memory.answering <= room * 10**9,
        }
        for number, (card, room) in enumerate(zip(on_cards(subject, cards), cards, strict=True))
    ]
    if as_json:
        echo_json({"model": subject.name, "kind": subject.kind, "cards": rows})
        return
    for row in rows:
        click.echo(
            f"card {row['card']}: {row['holds']}: {row['weights_gb']:.2f} GB of weights, at most "
            f"{row['beside_them_gb']:.2f} GB beside them, of {row['room_gb']} GB: "
            + ("fits" if row["fits"] else "does not fit")
        )


def _show_estimate(subject: Subject, memory: Memory, cards: tuple[int, ...], as_json: bool) -> None:
    if cards:
        _show_cards(subject, memory, cards, as_json)
        return
    from paligemma.bench.machine import free_memory_bytes

    free = free_memory_bytes()
    parts = {
        "weights": memory.weights,
        "beside them while loading": memory.loading,
        "beside them while answering": memory.answering,
        "together with Python": memory.total,
        "free here": free,
    }
    gigabytes = {name: None if one is None else one / 1e9 for name, one in parts.items()}
    if as_json:
        echo_json({"model": subject.name, "kind": subject.kind, "memory_gb": gigabytes})
        return
    for name, number in gigabytes.items():
        click.echo(f"{name:28} " + ("unknown" if number is None else f"{number:8.2f} GB"))


def _progress(words: str) -> None:
    """One line that is written over, for a person who waits."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{words}", nl=False, err=True)
