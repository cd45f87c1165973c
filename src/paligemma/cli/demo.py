"""`paligemma demo`: five questions about one picture, answered by the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli.answers import answer_text, write_overlay
from paligemma.cli.options import ModelChoice, model_options
from paligemma.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUESTION = "what color is the star?"
DETECTED = "circle ; star ; heart ; digit ; sign"
SEGMENTED = "star ; heart"
# A scene that shows all of these, where the repository's picture is not at hand.
SCENE_SEED = 5
SCENE_SIZE_PX = 448


@click.command()
@click.argument("image", required=False)
@click.option(
    "--output-dir",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Where the overlays go.",
)
@model_options
def demo(image: str | None, folder: Path, model: ModelChoice) -> None:
    """Caption, question, reading, detection and segmentation of IMAGE; overlays go to demo/.

    Without IMAGE it is examples/desk.png of the repository, or else a drawn scene.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--output-dir must name a folder that can be written, got {str(folder)!r} ({error}); "
            "name another"
        ) from error
    pg = model.load()
    picture = _picture() if image is None else pg.open_picture(image)
    encoded = pg.encode_image(picture)  # once, for all five
    for prompt, overlay in (
        ("caption en", None),
        (f"answer en {QUESTION}", None),
        ("ocr", None),
        (f"detect {DETECTED}", "detect.png"),
        (f"segment {SEGMENTED}", "segment.png"),
    ):
        found = encoded.ask(prompt)
        click.echo(f"\n> {prompt}\n{answer_text(found)}")
        if overlay is not None:
            write_overlay(folder / overlay, picture, prompt, found)


def _picture() -> NDArray[Any]:
    from paligemma.processing.image import load_image

    for folder in (Path.cwd(), Path(__file__).parents[3]):
        path = folder / "examples" / "desk.png"
        if path.is_file():
            click.echo(f"paligemma: looking at {path}", err=True)
            return load_image(path)
    from paligemma.scenes import SceneOptions, draw_scene

    click.echo("paligemma: looking at a drawn scene", err=True)
    options = SceneOptions(size_hw=(SCENE_SIZE_PX, SCENE_SIZE_PX), split="heldout")
    return draw_scene(SCENE_SEED, options).image
