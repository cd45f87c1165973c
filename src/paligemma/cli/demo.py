"""`paligemma demo`: questions about one picture, answered by the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from paligemma.cli.options import ModelChoice, NamedPath, model_options, overwrite_option
from paligemma.cli.pictures import require_kept, require_pictures
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.show import echo_json, write_overlay
from paligemma.errors import ConfigError
from paligemma.whole_file import require_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from paligemma.outputs.detections import Detections

PROMPTS = (
    "caption en",
    "answer en what color is the star?",
    "answer en what is below the pizza?",
    "ocr",
    "detect cat ; pizza ; trumpet ; star ; digit",
    "segment pizza",
    "segment heart",
    "segment sign",
)
DRAWN = ("detect", "segment")
SHEET = "sheet.png"
# One thing is shown once.
MAX_OVERLAP = 0.5


@click.command(cls=SectionedCommand)
@click.argument("image", required=False)
@click.option(
    "--output-dir",
    "folder",
    type=NamedPath(),
    default=Path("demo"),
    show_default=True,
    help="Where the overlays go.",
)
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
@model_options
def demo(
    image: str | None, folder: Path, overwrite: bool, as_json: bool, model: ModelChoice
) -> None:
    """Caption, question, reading, detection and segmentation of IMAGE; pictures go to demo/.

    Without IMAGE it is a drawn desk with things on it, examples/desk.png of the repository.
    """
    from paligemma.outputs.export import save_png
    from paligemma.processing.image import load_image

    picture = None
    images = [] if image is None else [image]
    require_pictures(images, model)
    files = [*(folder / f"{task}.png" for task in DRAWN), folder / SHEET]
    require_kept(images, files, overwrite=overwrite)
    _require_no_folders(files)
    if image is not None:
        how = {name: model.options.get(name) for name in ("allow_url", "background")}
        picture = load_image(image, **{name: value for name, value in how.items() if value})
    require_writable(folder)
    pg = model.load()
    if picture is None:
        picture = _picture()
    encoded = pg.encode_image(picture)  # once, for all questions
    answers = []
    lines: list[str] = []
    gone: BrokenPipeError | None = None
    drawn: dict[str, list[tuple[str, Detections]]] = {task: [] for task in DRAWN}
    for prompt in PROMPTS:
        found = encoded.ask(prompt, max_overlap=MAX_OVERLAP)
        answers.append({"prompt": prompt, **found.to_json()})
        if not as_json and gone is None:
            try:
                click.echo(f"\n> {prompt}\n{found}")
            except BrokenPipeError as error:  # after `| head`, its pictures are wanted all the same
                gone = error
        task = prompt.split()[0]
        if task in DRAWN:
            drawn[task].append((prompt, cast("Detections", found)))
        else:
            lines.append(f"{prompt} -> {found}")
    tiles = []
    for task, answered in drawn.items():
        prompt, objects = _joined(task, answered)
        write_overlay(folder / f"{task}.png", picture, prompt, objects)
        tiles.append((", ".join(asked for asked, _ in answered), objects))
    save_png(_sheet(picture, tiles, lines), folder / SHEET)
    click.echo(f"paligemma: wrote {folder / SHEET}", err=True)
    if gone is not None:
        raise gone
    if as_json:
        echo_json({"model": model.name, "answers": answers})


def _require_no_folders(files: Sequence[Path]) -> None:
    """Raise ConfigError where a folder has the name of a picture to be written."""
    if folders := [click.format_filename(path) for path in files if path.is_dir()]:
        raise ConfigError(
            f"a picture cannot take the place of a folder, and {' and '.join(folders)} is one; "
            "name another --output-dir"
        )


def _joined(task: str, answered: Sequence[tuple[str, Detections]]) -> tuple[str, Detections]:
    """Answers to several prompts of a task as that of one."""
    labels = " ; ".join(prompt.removeprefix(f"{task} ") for prompt, _ in answered)
    first = answered[0][1]
    items = tuple(item for _, found in answered for item in found)
    text = " ; ".join(found.text for _, found in answered)
    asked = tuple(dict.fromkeys(label for _, found in answered for label in found.asked_labels))
    return f"{task} {labels}", replace(first, items=items, text=text, asked_labels=asked)


def _sheet(
    picture: NDArray[Any], answered: Sequence[tuple[str, Detections]], lines: Sequence[str]
) -> Image.Image:
    """All answers on one picture: boxes beside masks, words below."""
    from paligemma.outputs.draw import DrawStyle
    from paligemma.outputs.sheet import on_sheet, with_heads, with_lines

    tiles = []
    for head, found in answered:
        # The confidence of a mask is that of sixteen more tokens: low beside that of a box.
        style = DrawStyle(legend=False, scores=not head.startswith("segment"))
        tiles.append(with_heads(found.draw(picture, style=style), [head]))
    return with_lines(on_sheet(tiles, len(tiles)), lines)


def _picture() -> NDArray[Any]:
    from paligemma.processing.image import load_image
    from paligemma.scenes.desk import draw_desk

    for folder in (Path.cwd(), Path(__file__).parents[3]):
        path = folder / "examples" / "desk.png"
        if path.is_file():
            click.echo(f"paligemma: looking at {path}", err=True)
            return load_image(path)
    click.echo("paligemma: looking at a drawn desk", err=True)
    return draw_desk().image
