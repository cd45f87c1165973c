"""`paligemma inspect`: what the model sees of one example, without loading its weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.options import ModelChoice, NamedPath, model_options, overwrite_option
from paligemma.cli.pictures import ImagesArgument, require_kept, require_pictures
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.show import echo_json
from paligemma.whole_file import require_writable

if TYPE_CHECKING:
    from paligemma.processing.inspection import ExampleView

_HEADER = f"{'pos':>4} {'id':>6}  {'piece':<20} {'role':<7} ar in loss label"
_ATTENTION = "attention.png"


@click.command("inspect", cls=SectionedCommand)
@click.argument("images", cls=ImagesArgument, nargs=-1, metavar="[IMAGE]...")
@click.argument("prompt")
@click.option("--suffix", metavar="TEXT", help="The answer to learn; shows a training example.")
@click.option("--text-len", type=click.IntRange(1, 8192), metavar="N", help="Pad or cut to N.")
@click.option(
    "--output",
    "-o",
    "folder",
    type=NamedPath(),
    metavar="DIR",
    help="Write attention.png and the resized pictures there.",
)
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@model_options
def inspect(
    images: tuple[str, ...],
    prompt: str,
    suffix: str | None,
    text_len: int | None,
    folder: Path | None,
    overwrite: bool,
    as_json: bool,
    model: ModelChoice,
) -> None:
    """Show ids, masks and labels of PROMPT about IMAGE, as the model reads them.

    Several pictures are frames of one example. With -o the attention pattern and the resized
    pictures are written as PNG.

    \b
    paligemma inspect photo.jpg "answer en what is it?" --suffix "a cat" -o seen
    """
    from paligemma.pipeline.loading import LoadOptions, load_processor
    from paligemma.processing.inspection import inspect_example

    require_pictures(images, model)
    if folder is not None:
        numbers = range(1, len(images) + 1)
        written = [folder / name for name in (*map(_picture_name, numbers), _ATTENTION)]
        require_kept(images, written, overwrite=overwrite)
        require_writable(folder)
    processor, config = load_processor(model.name, LoadOptions(**model.options))
    view = inspect_example(
        processor,
        (list(images) if len(images) > 1 else images[0]) if images else None,
        prompt,
        suffix,
        tokens_per_image=config.num_image_tokens,
        text_len=text_len,
    )
    if folder is not None:
        _write_pictures(folder, view)
    if as_json:
        echo_json(_view_json(view))
        return
    for line in _view_lines(view):
        click.echo(line)


def _view_json(view: ExampleView) -> dict[str, Any]:
    return {
        "num_image_tokens": view.num_image_tokens,
        "num_pictures": len(view.pictures),
        "tokens": [asdict(token) for token in view.tokens],
        "notices": list(view.notices),
    }


def _view_lines(view: ExampleView) -> list[str]:
    lines = [f"note: {notice}" for notice in view.notices]
    count = len(view.pictures)
    lines.append(
        f"{count} {'picture' if count == 1 else 'pictures'} of {view.pictures.shape[1]} px as "
        f"{view.num_image_tokens} soft tokens (ar 0, in 1), then {len(view.tokens)} text tokens:"
    )
    lines.append(_HEADER)
    for token in view.tokens:
        label = "" if token.label is None else str(token.label)
        lines.append(
            f"{token.position:4d} {token.token:6d}  {token.piece!r:<20} {token.role:<7} "
            f"{token.mask_ar:2d} {token.mask_input:2d} {token.mask_loss:4d} {label:>5}"
        )
    return lines


def _write_pictures(folder: Path, view: ExampleView) -> None:
    from PIL import Image

    from paligemma.model.attention import prefix_lm_mask
    from paligemma.outputs.export import save_png
    from paligemma.processing.attention_picture import attention_picture

    names = [_picture_name(number) for number in range(1, len(view.pictures) + 1)]
    for name, pixels in zip(names, view.pictures, strict=True):
        save_png(Image.fromarray(pixels), folder / name)
    mask = prefix_lm_mask(*view.masks())[0]
    save_png(attention_picture(mask, view), folder / _ATTENTION)
    click.echo(f"paligemma: wrote {', '.join([*names, _ATTENTION])} in {folder}", err=True)


def _picture_name(number: int) -> str:
    return f"picture_{number}.png"
