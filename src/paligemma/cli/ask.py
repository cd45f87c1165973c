"""The commands that ask a model about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli import stderr_log
from paligemma.cli.answering import Asker, check_prompt
from paligemma.cli.ask_each import Example, WhichFrame, answer_each, opened
from paligemma.cli.exports import (
    STANDARD_OUTPUT,
    ExportChoice,
    Exports,
    export_names,
    export_options,
    only_writer,
)
from paligemma.cli.options import (
    Command,
    ModelChoice,
    OutputChoice,
    decoding_options,
    frame_option,
    gathered_options,
    model_options,
    object_options,
    output_options,
    say_idle,
)
from paligemma.cli.pictures import (
    NAMED_LABELS,
    ImagesArgument,
    expanded,
    require_kept,
    require_pictures,
    roots_of_pictures,
)
from paligemma.cli.sections import SectionedCommand
from paligemma.cli.stopping import when_stopped
from paligemma.processing.frames import Frames

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.pipeline.pictures import EncodedImage

# The decorators give every command its `model`, `decoding` and `output`, some their `objects`; a
# command that only passes them on takes them as `**how`.


def images_argument(command: Command) -> Command:
    """The pictures of a command: files, folders, patterns, "-" for standard input; and which of
    their frames is meant."""
    images = click.argument(
        "images",
        cls=ImagesArgument,
        nargs=-1,
        required=True,
        metavar="IMAGE...",
        callback=expanded,
    )
    return images(frame_option(command))


def _choose_tiles(values: dict[str, Any]) -> dict[str, Any] | None:
    tile, overlap = values["tile"], values["tile_overlap"]
    if tile is None:
        if overlap is not None:
            raise click.UsageError("--tile-overlap is for tiles; state --tile too")
        return None
    return {"tile": tile} if overlap is None else {"tile": tile, "overlap": overlap}


tile_options = gathered_options(
    "tiles",
    [
        click.option(
            "--tile",
            metavar="CxR",
            help="For small objects: ask the picture and so many columns and rows of it, as 2x2.",
        ),
        click.option(
            "--tile-overlap",
            type=click.FloatRange(0, 0.9),
            metavar="SHARE",
            help="With --tile: share of a tile in common with the next; 0.2 by default.",
        ),
    ],
    _choose_tiles,
)

labels_option = click.option(
    "--labels",
    NAMED_LABELS,
    multiple=True,
    expose_value=False,
    metavar="LABELS",
    help='Things to find, as "cat ; dog", or one each time it is given; every other word is then '
    "a picture.",
)


@click.command(cls=SectionedCommand)
@images_argument
@click.argument("prompt")
@model_options
@decoding_options
@object_options
@export_options
@output_options
def run(images: tuple[str, ...], prompt: str, **how: Any) -> None:
    """Ask PROMPT about IMAGE; the prompt decides what comes back.

    Prompts that start with "detect" or "segment" give boxes or masks, others text. Several
    pictures, of files, folders or patterns, get the same prompt, one after the other.

    \b
    paligemma run photo.jpg "detect cat ; dog" -o found.png
    paligemma run a.jpg b.jpg "answer en how many people are there?" --json
    """
    _ask_objects(images, prompt, **how)


@click.command(cls=SectionedCommand)
@images_argument
@click.option("--lang", default="en", show_default=True, help="Language code.")
@click.option(
    "--style",
    type=click.Choice(["caption", "cap", "describe"]),
    default="caption",
    show_default=True,
    help="cap is short, describe longer.",
)
@model_options
@decoding_options
@output_options
def caption(images: tuple[str, ...], lang: str, style: str, **how: Any) -> None:
    """Describe IMAGE.

    \b
    paligemma caption photo.jpg --lang de --beams 2
    """
    from paligemma.processing.prompts import caption_prompt

    _ask_text(images, caption_prompt(lang, style), **how)


@click.command(cls=SectionedCommand)
@images_argument
@click.argument("question")
@click.option("--lang", default="en", show_default=True, help="Language code.")
@model_options
@decoding_options
@output_options
def answer(images: tuple[str, ...], question: str, lang: str, **how: Any) -> None:
    """Answer QUESTION about IMAGE.

    \b
    paligemma answer photo.jpg "what color is the car?" --json
    """
    from paligemma.processing.prompts import answer_prompt

    _ask_text(images, answer_prompt(question, lang), **how)


@click.command(cls=SectionedCommand)
@images_argument
@model_options
@decoding_options
@output_options
def read(images: tuple[str, ...], **how: Any) -> None:
    """Read the text in IMAGE.

    \b
    paligemma read sign.jpg
    """
    from paligemma.processing.prompts import read_prompt

    _ask_text(images, read_prompt(), **how)


@click.command(cls=SectionedCommand)
@images_argument
@click.argument("labels")
@labels_option
@model_options
@decoding_options
@object_options
@tile_options
@export_options
@output_options
def detect(images: tuple[str, ...], labels: str, **how: Any) -> None:
    """Find LABELS, separated by ";", in IMAGE.

    Prints label, confidence and box (left, top, right, bottom in pixels) of each object found.
    IMAGE may be a folder.

    \b
    paligemma detect photo.jpg "cat ; dog" --threshold 0.3 -o found.png
    paligemma detect photos/ --labels "cat ; dog" --coco found.json
    """
    from paligemma.processing.prompts import detect_prompt

    _ask_objects(images, detect_prompt(labels), **how)


@click.command(cls=SectionedCommand)
@images_argument
@click.argument("labels")
@labels_option
@model_options
@decoding_options
@object_options
@tile_options
@export_options
@output_options
def segment(images: tuple[str, ...], labels: str, **how: Any) -> None:
    """Outline LABELS, separated by ";", in IMAGE.

    Released models need their mask codec, vae-oid.npz: beside the model, as --mask-codec, or named
    in PALIGEMMA_MASK_CODEC.

    \b
    paligemma segment photo.jpg "cat" -o outlined.png
    paligemma segment photos/ --labels cat --coco outlined.json
    """
    from paligemma.processing.prompts import segment_prompt

    _ask_objects(images, segment_prompt(labels), **how)


@click.command(cls=SectionedCommand)
@images_argument
@click.argument("prompt")
@click.option(
    "--frames",
    is_flag=True,
    help="The pictures, or all frames of a single file, are the frames of one example.",
)
@model_options
@decoding_options
@output_options
def generate(
    images: tuple[str, ...],
    prompt: str,
    frames: bool,
    frame: WhichFrame,
    model: ModelChoice,
    decoding: dict[str, Any],
    output: OutputChoice,
) -> None:
    """Write the raw answer to PROMPT about IMAGE, location and mask tokens included.

    A single answer is written as it comes, token by token.

    \b
    paligemma generate photo.jpg "segment cat"
    paligemma generate left.jpg right.jpg "answer en are they the same?" --frames
    """
    examples = [images] if frames else [(image,) for image in images]
    which = "all" if frames and len(images) == 1 and frame is None else frame
    shows_text = not output.as_json and output.overlay is None
    if len(examples) > 1 or not shows_text or {"num_beams", "best_of"} & decoding.keys():
        _ask_text(examples, prompt, frame=which, model=model, decoding=decoding, output=output)
        return
    check_prompt(prompt)
    require_pictures(images, model)
    pg = model.load()
    pictures = opened(pg, examples[0], which)
    pieces = pg.stream(Frames(pictures) if len(pictures) > 1 else pictures[0], prompt, **decoding)
    with stderr_log.held():
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()


def _ask_objects(
    images: Sequence[str],
    prompt: str,
    *,
    frame: WhichFrame,
    model: ModelChoice,
    decoding: dict[str, Any],
    objects: dict[str, Any],
    exports: ExportChoice,
    output: OutputChoice,
    tiles: dict[str, Any] | None = None,
) -> None:
    from paligemma.processing.prompts import clean_prompt, object_prompt, single_prompts

    if tiles is not None:
        from paligemma.pipeline.tiling import MAX_TILES, tile_places

        tile_places((MAX_TILES, MAX_TILES), **tiles)  # before a model is loaded
    asker = Asker(decoding, objects, tiles)

    def ask(pg: PaliGemma, picture: EncodedImage) -> TextAnswer | Detections:
        return asker.ask(pg, picture, prompt)

    how: dict[str, Any] = {"frame": frame, "model": model, "output": output}
    asked = [object_prompt(one) for one in single_prompts(clean_prompt(prompt)[0])[0]]
    if exports.any:
        if None in asked:
            raise click.UsageError(
                "--coco, --yolo and --csv write objects, and the prompt asks for none; begin it "
                "with detect or segment"
            )
        if exports.csv == STANDARD_OUTPUT and output.as_json:
            raise click.UsageError("standard output takes --json or --csv; name a file of --csv")
        require_kept(images, exports.files, overwrite=True)
        answers = {"model": model, "decoding": decoding, "objects": objects, "tiles": tiles}
        names = export_names(images, roots_of_pictures())
        with only_writer(exports):
            kept = Exports(
                exports,
                asked={"prompt": prompt, "frame": frame, **{k: str(v) for k, v in answers.items()}},
                labels=[label for one in asked if one is not None for label in one.labels],
                names=names,
                overwrite=output.overwrite,
            )
            when_stopped("goes on where it stopped")(answer_each)(
                list(names), prompt, ask, exports=kept, **how
            )
        return
    all_text = answer_each(images, prompt, ask, **how)
    if asked[0] is None:
        idle = ["--" + name.replace("_", "-") for name, value in asker.rules.items() if value]
        # The model may answer any prompt with boxes.
        if all_text:
            stated = {
                "--threshold": objects["threshold"],
                "--max-overlap": objects["max_overlap"],
                "--calibration": objects["calibration"],
            }
            idle += [option for option, value in stated.items() if value is not None]
        say_idle(idle, "the prompt asks for no boxes, as 'detect cat ; dog' does")


def _ask_text(
    examples: Sequence[str | Example],
    prompt: str,
    *,
    frame: WhichFrame,
    model: ModelChoice,
    decoding: dict[str, Any],
    output: OutputChoice,
) -> None:
    def ask(pg: PaliGemma, picture: EncodedImage) -> TextAnswer:
        return pg.generate(picture, prompt, **decoding)

    answer_each(examples, prompt, ask, frame=frame, model=model, output=output)
