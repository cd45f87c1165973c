"""The commands that ask a model about pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from paligemma.cli import EXIT_BAD_INPUT, stderr_log
from paligemma.cli.answering import Asker, check_prompt
from paligemma.cli.options import (
    Command,
    ModelChoice,
    OutputChoice,
    decoding_options,
    frame_option,
    model_options,
    object_options,
    output_options,
    say_idle,
)
from paligemma.cli.pictures import ImagesArgument, require_kept, require_pictures
from paligemma.cli.show import JsonResults, overlay_paths, pictures_json, write_overlay
from paligemma.errors import DataError, ImageError, PaliGemmaError
from paligemma.processing.frames import Frames

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.pipeline.pictures import EncodedImage

# The decorators give every command its `model`, `decoding` and `output`, some their `objects`; a
# command that only passes them on takes them as `**how`.
Ask = Callable[["PaliGemma", "EncodedImage"], "TextAnswer | Detections"]
Example = tuple[str, ...]  # a picture, or frames
WhichFrame = int | Literal["all"] | None


def images_argument(command: Command) -> Command:
    """The pictures of a command, "-" for standard input, and which of their frames is meant."""
    images = click.argument(
        "images",
        cls=ImagesArgument,
        nargs=-1,
        required=True,
        metavar="IMAGE...",
        callback=lambda ctx, parameter, names: tuple(
            "/dev/stdin" if name == "-" else name for name in names
        ),
    )
    return images(frame_option(command))


@click.command()
@images_argument
@click.argument("prompt")
@model_options
@decoding_options
@object_options
@output_options
def run(images: tuple[str, ...], prompt: str, **how: Any) -> None:
    """Ask PROMPT about IMAGE; the prompt decides what comes back.

    Prompts that start with "detect" or "segment" give boxes or masks, others text. Several
    pictures get the same prompt, one after the other.

    \b
    paligemma run photo.jpg "detect cat ; dog" -o found.png
    paligemma run a.jpg b.jpg "answer en how many people are there?" --json
    """
    _ask_objects(images, prompt, **how)


@click.command()
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


@click.command()
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


@click.command()
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


@click.command()
@images_argument
@click.argument("labels")
@model_options
@decoding_options
@object_options
@output_options
def detect(images: tuple[str, ...], labels: str, **how: Any) -> None:
    """Find LABELS, separated by ";", in IMAGE.

    Prints label, confidence and box (left, top, right, bottom in pixels) of each object found.

    \b
    paligemma detect photo.jpg "cat ; dog" --threshold 0.3 -o found.png
    """
    from paligemma.processing.prompts import detect_prompt

    _ask_objects(images, detect_prompt(labels), **how)


@click.command()
@images_argument
@click.argument("labels")
@model_options
@decoding_options
@object_options
@output_options
def segment(images: tuple[str, ...], labels: str, **how: Any) -> None:
    """Outline LABELS, separated by ";", in IMAGE.

    Released models need their mask codec, vae-oid.npz: beside the model, as --mask-codec, or named
    in PALIGEMMA_MASK_CODEC.

    \b
    paligemma segment photo.jpg "cat" -o outlined.png
    """
    from paligemma.processing.prompts import segment_prompt

    _ask_objects(images, segment_prompt(labels), **how)


@click.command()
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
    frame: int | None,
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
    which: WhichFrame = "all" if frames and len(images) == 1 and frame is None else frame
    shows_text = not output.as_json and output.overlay is None
    if len(examples) > 1 or not shows_text or {"num_beams", "best_of"} & decoding.keys():
        _ask_text(examples, prompt, frame=which, model=model, decoding=decoding, output=output)
        return
    check_prompt(prompt)
    require_pictures(images, model)
    pg = model.load()
    pictures = _opened(pg, examples[0], which)
    pieces = pg.stream(Frames(pictures) if frames else pictures[0], prompt, **decoding)
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
    output: OutputChoice,
) -> None:
    asker = Asker(decoding, objects)

    def ask(pg: PaliGemma, picture: EncodedImage) -> TextAnswer | Detections:
        return asker.ask(pg, picture, prompt)

    all_text = _answer_each(images, prompt, ask, frame=frame, model=model, output=output)
    from paligemma.processing.prompts import clean_prompt, object_prompt

    if object_prompt(clean_prompt(prompt)[0]) is None:
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

    _answer_each(examples, prompt, ask, frame=frame, model=model, output=output)


def _answer_each(
    examples: Sequence[str | Example],
    prompt: str,
    ask: Ask,
    *,
    frame: WhichFrame,
    model: ModelChoice,
    output: OutputChoice,
) -> bool:
    """Ask the same of every example and show each answer as it comes; none is kept.

    One of several pictures that cannot be read, asked or drawn does not stop the others; the
    program then ends with exit code 2.

    Args:
        examples: a picture each, or the frames of one example; paths, or URLs where the model may
            fetch them.
        prompt: the prompt that `ask` asks, for the record.
        ask: function from a model and a picture to the answer.
        frame: frame of each picture, or all frames of each as one example.
        model: the model to load.
        output: where answers go.

    Returns:
        Whether every answer is text.

    Raises:
        PaliGemmaError: bad input, before any work; later where there is a single example, or where
            the first fails for another reason than its picture.
    """
    # A bad prompt or path is reported before a large model is loaded.
    check_prompt(prompt)
    frames = [(example,) if isinstance(example, str) else example for example in examples]
    images = [image for example in frames for image in example]
    require_pictures(images, model)
    overlays = overlay_paths([example[0] for example in frames], output.overlay)
    require_kept(images, filter(None, overlays), overwrite=output.overwrite)
    pg = model.load()
    many, failed, all_text = len(frames) > 1, False, True
    with JsonResults(model.name, many=many) as results:
        for number, (example, overlay) in enumerate(zip(frames, overlays, strict=True)):
            shown = None if output.as_json else many
            try:
                record, is_text = _answer_one(
                    pg, example, prompt, ask, overlay, frame=frame, shown=shown
                )
                all_text &= is_text
            except PaliGemmaError as error:
                if not many or (number == 0 and not isinstance(error, ImageError)):
                    raise
                click.echo(f"paligemma: {error}", err=True)
                name = click.format_filename(example[0])
                record = {"image": name, "prompt": prompt, "error": str(error)}
            failed |= "error" in record
            if output.as_json:
                results.add(record)
    if failed:
        raise click.exceptions.Exit(EXIT_BAD_INPUT)
    return all_text


def _answer_one(
    pg: PaliGemma,
    example: Example,
    prompt: str,
    ask: Ask,
    overlay: Path | None,
    *,
    frame: WhichFrame,
    shown: bool | None,
) -> tuple[dict[str, Any], bool]:
    """Ask about one example, print the answer as text, and write its overlay.

    Args:
        shown: whether the line has the picture's name in front; None prints nothing.

    Returns:
        The record for JSON, with an error where the overlay was not written, and whether the answer
        is text.
    """
    from paligemma.outputs.types import TextAnswer
    from paligemma.outputs.words import answer_line

    pictures = _opened(pg, example, frame)
    found = ask(pg, pg.encode_image(Frames(pictures) if len(pictures) > 1 else pictures[0]))
    if shown is not None:
        name = click.format_filename(example[0])
        click.echo(f"{name}: {answer_line(found)}" if shown else str(found))
    record = {**pictures_json(example, pictures[0].shape[:2]), "prompt": prompt}
    record.update(found.to_json())
    if overlay is not None:
        try:
            write_overlay(overlay, pictures[0], prompt, found)
        except DataError as error:
            click.echo(f"paligemma: {error}", err=True)
            record["error"] = str(error)
    return record, isinstance(found, TextAnswer)


def _opened(pg: PaliGemma, example: Example, frame: WhichFrame) -> list[NDArray[Any]]:
    if frame == "all":
        return pg.processor.reader.load_frames(example[0])
    return [pg.open_picture(image, frame=frame) for image in example]
