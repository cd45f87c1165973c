"""`paligemma demo`: five questions about one picture, answered by the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from paligemma.cli.options import ModelChoice, NamedPath, model_options, overwrite_option
from paligemma.cli.pictures import require_kept, require_pictures
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.show import echo_json, write_overlay
from paligemma.whole_file import require_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from paligemma.outputs.detections import Detections
    from paligemma.scenes import Scene

PROMPTS = (
    "caption en",
    "answer en what color is the star?",
    "ocr",
    "detect circle ; star ; heart ; digit ; sign",
    "segment star",
)
DRAWN = ("detect", "segment")
SHEET = "sheet.png"
# One thing is shown once.
MAX_OVERLAP = 0.5
# A scene that shows all of these, where the repository's picture is not at hand.
SCENE_SEED = 25
SCENE_SIZE_PX = 448


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

    Without IMAGE it is examples/desk.png of the repository, or else a drawn scene.
    """
    from paligemma.outputs.export import save_png
    from paligemma.processing.image import load_image

    picture = None
    images = [] if image is None else [image]
    require_pictures(images, model)
    files = [*(folder / f"{task}.png" for task in DRAWN), folder / SHEET]
    require_kept(images, files, overwrite=overwrite)
    if image is not None:
        how = {name: model.options.get(name) for name in ("allow_url", "background")}
        picture = load_image(image, **{name: value for name, value in how.items() if value})
    require_writable(folder)
    pg = model.load()
    if picture is None:
        picture = _picture()
    encoded = pg.encode_image(picture)  # once, for all five
    answers = []
    lines: list[str] = []
    drawn: list[Detections] = []
    for prompt in PROMPTS:
        found = encoded.ask(prompt, max_overlap=MAX_OVERLAP)
        answers.append({"prompt": prompt, **found.to_json()})
        if not as_json:
            click.echo(f"\n> {prompt}\n{found}")
        task = prompt.split()[0]
        if task in DRAWN:
            write_overlay(folder / f"{task}.png", picture, prompt, found)
            drawn.append(cast("Detections", found))
        else:
            lines.append(f"{prompt} → {found}")
    save_png(_sheet(picture, drawn, lines), folder / SHEET)
    click.echo(f"paligemma: wrote {folder / SHEET}", err=True)
    if as_json:
        echo_json({"model": model.name, "answers": answers})


def _sheet(picture: NDArray[Any], drawn: Sequence[Detections], lines: Sequence[str]) -> Image.Image:
    """All answers on one picture: boxes beside masks, words below."""
    from paligemma.outputs.draw import DrawStyle
    from paligemma.outputs.sheet import on_sheet, with_heads, with_lines

    heads = [prompt for prompt in PROMPTS if prompt.split()[0] in DRAWN]
    style = DrawStyle(legend=False)
    tiles = [
        with_heads(found.draw(picture, style=style), [head])
        for found, head in zip(drawn, heads, strict=True)
    ]
    return with_lines(on_sheet(tiles, len(tiles)), lines)


def _picture() -> NDArray[Any]:
    from paligemma.processing.image import load_image

    for folder in (Path.cwd(), Path(__file__).parents[3]):
        path = folder / "examples" / "desk.png"
        if path.is_file():
            click.echo(f"paligemma: looking at {path}", err=True)
            return load_image(path)
    click.echo("paligemma: looking at a drawn scene", err=True)
    return drawn_scene().image


def drawn_scene() -> Scene:
    """A picture to ask about where no file is at hand."""
    from paligemma.scenes import SceneOptions, draw_scene

    # Objects are drawn for 224 px; the scale keeps their share of the picture.
    options = SceneOptions(size_px=SCENE_SIZE_PX, split="heldout", object_scale=SCENE_SIZE_PX / 224)
    return draw_scene(SCENE_SEED, options)
