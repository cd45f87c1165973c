"""`paligemma export`: a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.sections import ModelName
from paligemma.cli.stopping import when_stopped

# Which options go with each target.
_OPTIONS = {
    "onnx": ("--quant", "--image-size", "--no-check"),
    "aoti": ("--image-size",),
    "hub": ("--dtype",),
}


@click.command("export")
@click.argument("model", type=ModelName())
@click.argument("folder", type=NamedPath(file_okay=False), metavar="DIR")
@click.option(
    "--to",
    "target",
    type=click.Choice(["onnx", "aoti", "hub"]),
    required=True,
    help="onnx: graphs for onnxruntime and transformers.js; aoti: packages that AOTInductor "
    "compiles for this kind of CPU; hub: a folder for transformers, vLLM and the hub.",
)
@click.option(
    "--quant",
    "kinds",
    type=click.Choice(["int8", "int4"]),
    multiple=True,
    help="onnx: also write the graphs with weights of fewer bits; may be named twice.",
)
@click.option(
    "--image-size",
    "--image-size-px",
    "image_size_px",
    type=click.IntRange(min=1),
    metavar="PX",
    help="onnx, aoti: another resolution than the model's.",
)
@click.option(
    "--no-check",
    is_flag=True,
    help="onnx: do not compare the graphs with the model, which takes memory for both.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="hub: dtype of the weights; by default that of the model.",
)
@click.option("--revision", metavar="NAME", help="Branch of the hub.")
@when_stopped("begins anew, as nothing was written")
def export_command(
    model: str,
    folder: Path,
    target: str,
    kinds: tuple[str, ...],
    image_size_px: int | None,
    no_check: bool,
    dtype: str | None,
    revision: str | None,
) -> None:
    """Write MODEL into the new folder DIR in a form that other programs run.

    \b
    paligemma export tiny tiny-onnx --to onnx --quant int8 --quant int4
    paligemma export runs/cards/merged cards --to hub

    An adapter is merged first: paligemma adapter merge. What is written as onnx or aoti is run
    beside the model before the folder appears, and the largest difference of a logit is told.
    """
    given = {
        "--quant": kinds,
        "--image-size": image_size_px,
        "--no-check": no_check,
        "--dtype": dtype,
    }
    for option in sorted(set(given) - set(_OPTIONS[target])):
        if given[option]:
            raise click.UsageError(f"{option} does not go with --to {target}; leave it out")
    if target == "hub":
        from paligemma.export.hub_folder import export_hub

        export_hub(model, folder, dtype=dtype, revision=revision)
    elif target == "aoti":
        from paligemma.export.aoti_folder import export_aoti

        differences = export_aoti(
            model, folder, revision=revision, image_size_px=image_size_px, on_step=_say
        )
        largest = max(one.largest for one in differences)
        click.echo(f"float32: logits differ by {largest:.1e} at most")
    else:
        _to_onnx(
            model,
            folder,
            kinds=tuple(dict.fromkeys(kinds)),
            revision=revision,
            image_size_px=image_size_px,
            check=not no_check,
        )
    click.echo(f"paligemma: wrote {click.format_filename(folder)}", err=True)


def _to_onnx(model: str, folder: Path, **options: Any) -> None:
    from paligemma.export.onnx_folder import export_onnx

    found = export_onnx(model, folder, on_step=_say, **options)
    for one in found:
        if one.differences:
            click.echo(
                f"{one.precision}: logits differ by {one.largest:.1e} at most, the same token is "
                f"chosen at {one.same_choice:.0%} of the positions or more"
            )


def _say(words: str) -> None:
    click.echo(f"paligemma: {words}", err=True)
