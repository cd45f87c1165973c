"""The commands about checkpoints: list, convert, check."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.sections import ModelName
from paligemma.cli.show import echo_json
from paligemma.cli.stopping import when_stopped

_VERDICTS = {
    "ok": "Nothing is wrong with it.",
    "warning": "It will work, but see the warnings.",
    "error": "It will not work as it is; see the errors.",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def models(as_json: bool) -> None:
    """List the models that can be named with --model.

    Released models are fetched from the hub when first used, after their licence was accepted
    there. A folder or an .npz file is a model too.

    \b
    paligemma models
    """
    rows = _rows()
    if as_json:
        echo_json({"models": rows})
        return
    width = max(len(row["name"]) for row in rows)
    click.echo(f"{'name':{width}}  parameters  input px  dtypes")
    for row in rows:
        count = f"{row['num_parameters'] / 1e6:,.0f} M"
        dtypes = ", ".join(row["dtypes"])
        click.echo(f"{row['name']:{width}}  {count:>10}  {row['image_size_px']:>8}  {dtypes}")
    click.echo("\n* stands for the name of a transfer task. Names of the hub need its licence.")


def _rows() -> list[dict[str, Any]]:
    from paligemma.config import RELEASES, SO400M_14

    rows = [_embedded_row()]
    for release in RELEASES:
        for size_px in release.resolutions_px:
            # Only the position table grows with the resolution.
            new_rows = (size_px // SO400M_14.patch_size_px) ** 2 - SO400M_14.num_tokens
            rows.append(
                {
                    "name": release.pattern.format(res=size_px),
                    "num_parameters": release.num_parameters_224 + new_rows * SO400M_14.width,
                    "image_size_px": size_px,
                    "dtypes": list(release.dtypes),
                }
            )
    return rows


def _embedded_row() -> dict[str, Any]:
    """Read from the header of its file, which needs neither torch nor numpy."""
    folder = Path(__file__).parents[1] / "models" / "tiny"
    with open(folder / "model.safetensors", "rb") as file:
        (num_bytes,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(num_bytes))
    tensors.pop("__metadata__", None)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "name": "tiny",
        "num_parameters": sum(math.prod(entry["shape"]) for entry in tensors.values()),
        "image_size_px": config["vision_config"]["image_size"],
        "dtypes": [config["torch_dtype"]],
    }


def _require_finite(ctx: click.Context, option: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number.", ctx, option)
    return value


@click.command()
@click.argument("source", type=ModelName())
@click.argument("folder", type=NamedPath())
@click.option(
    "--layout",
    type=click.Choice(["hf", "npz"]),
    default="hf",
    show_default=True,
    help="hf: safetensors and config.json; npz: big_vision.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="By default that of the source.",
)
@click.option(
    "--spelling",
    type=click.Choice(["published", "current"]),
    default="published",
    show_default=True,
    help="Key names of safetensors: as published, or as transformers writes since 4.52.",
)
@click.option(
    "--quant",
    metavar="NAME",
    help="Pack the weights in fewer bits, in the form in which a CPU reads them: int4, int8, fp8 "
    "or bf16, as for the other commands.",
)
@click.option("--pad-rows", is_flag=True, help="Pad the embedding table, as published (257,216).")
@click.option(
    "--max-shard-gb",
    type=click.FloatRange(0.01, 1e6),
    callback=_require_finite,
    default=5.0,
    show_default=True,
    help="Size at which another safetensors file begins.",
)
@click.option("--revision", metavar="NAME", help="Branch of the hub.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the checkpoint that FOLDER holds; its other files stay.",
)
@when_stopped("begins anew, as nothing was written")
def convert(
    source: str,
    folder: Path,
    layout: str,
    dtype: str | None,
    spelling: str,
    quant: str | None,
    pad_rows: bool,
    max_shard_gb: float,
    revision: str | None,
    overwrite: bool,
) -> None:
    """Rewrite the checkpoint SOURCE into FOLDER, one tensor in memory at a time.

    \b
    paligemma convert paligemma-3b-mix-224.npz mix-224-hf --dtype bfloat16
    paligemma convert google/paligemma2-3b-pt-224 pt-224-npz --layout npz
    paligemma convert google/paligemma2-3b-mix-448 mix-448-int4 --quant int4
    """
    from paligemma.weights.save import convert as rewrite

    options: dict[str, Any] = {"layout": layout, "spelling": spelling}
    written = rewrite(
        source,
        folder,
        dtype=dtype,
        max_shard_bytes=int(max_shard_gb * 1e9),
        pad_rows=pad_rows,
        quant=quant,
        overwrite=overwrite,
        revision=revision,
        **options,
    )
    click.echo(f"paligemma: wrote {click.format_filename(written)}", err=True)


@click.command()
@click.argument("model", type=ModelName())
@click.option("--revision", metavar="NAME", help="Branch of the hub.")
@click.option("--quick", is_flag=True, help="Headers only: no hashes, values or forward pass.")
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@click.pass_context
def doctor(
    ctx: click.Context, model: str, revision: str | None, quick: bool, as_json: bool
) -> None:
    """Check the checkpoint MODEL and say in plain words what is wrong with it.

    Looks at files, hashes, config, shapes, dtypes, statistics, tokenizer and embeddings, and runs
    a forward pass. Exits with 1 if the model will not work.

    \b
    paligemma doctor tiny
    paligemma doctor ./paligemma2-3b-mix-448 --quick
    """
    from paligemma.weights.doctor import diagnose, worst

    findings = diagnose(model, revision=revision, hash_files=not quick, read_weights=not quick)
    verdict = worst(findings)
    if as_json:
        echo_json(
            {"model": model, "verdict": verdict, "findings": [asdict(found) for found in findings]}
        )
    else:
        for found in findings:
            click.echo(f"{found.level:7}  {found.check:10}  {found.message}")
        click.echo(_VERDICTS[verdict])
    ctx.exit(1 if verdict == "error" else 0)
