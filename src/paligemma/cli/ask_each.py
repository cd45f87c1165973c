"""The same question to many pictures: one that is bad loses no other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from paligemma.cli import EXIT_BAD_INPUT
from paligemma.cli.answering import check_prompt
from paligemma.cli.exports import Exports
from paligemma.cli.options import ModelChoice, OutputChoice
from paligemma.cli.pictures import require_kept, require_pictures
from paligemma.cli.show import JsonResults, overlay_paths, pictures_json, write_overlay
from paligemma.errors import DataError, ImageError, PaliGemmaError
from paligemma.processing.frames import EvenFrames, Frames, FramesAt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.pipeline.pictures import EncodedImage

Ask = Callable[["PaliGemma", "EncodedImage"], "TextAnswer | Detections"]
Example = tuple[str, ...]  # a picture, or frames
WhichFrame = int | list[int] | EvenFrames | FramesAt | Literal["all"] | None


def answer_each(
    examples: Sequence[str | Example],
    prompt: str,
    ask: Ask,
    *,
    frame: WhichFrame,
    model: ModelChoice,
    output: OutputChoice,
    exports: Exports | None = None,
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
        exports: files of other tools; answers then go there and not to standard output as text.

    Returns:
        Whether every answer is text.

    Raises:
        PaliGemmaError: bad input, before any work; later where there is a single example, or where
            the first fails for another reason than its picture.
    """
    from paligemma.outputs.types import TextAnswer

    # A bad prompt or path is reported before a large model is loaded.
    check_prompt(prompt)
    frames = [(example,) if isinstance(example, str) else example for example in examples]
    images = [image for example in frames for image in example]
    require_pictures(images, model, every=False)
    overlays = overlay_paths([example[0] for example in frames], output.overlay)
    require_kept(images, filter(None, overlays), overwrite=output.overwrite)
    pg = model.load()
    many, failed, all_text = len(frames) > 1, False, True
    shown = None if output.as_json or exports is not None else many
    pairs = list(zip(frames, overlays, strict=True))
    if exports is not None and not output.as_json:
        pairs = [pair for pair in pairs if not exports.has(pair[0][0])]
    with (
        JsonResults(model.name, many=many) as results,
        exports or nullcontext(),
        _progress(len(pairs), len(frames), shown=many and _shows_progress(exports)) as bar,
    ):
        for number, (example, overlay) in enumerate(pairs):
            try:
                record, found = _answer_one(
                    pg, example, prompt, ask, overlay, frame=frame, shown=shown
                )
                all_text &= isinstance(found, TextAnswer)
                if exports is not None and not isinstance(found, TextAnswer):
                    exports.add(example[0], found)
            except PaliGemmaError as error:
                if not many or (number == 0 and not isinstance(error, ImageError)):
                    raise
                bar.clear()
                click.echo(f"paligemma: {error}", err=True)
                name = click.format_filename(example[0])
                record = {"image": name, "prompt": prompt, "error": str(error)}
            failed |= "error" in record
            if output.as_json:
                results.add(record)
            bar.update()
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
) -> tuple[dict[str, Any], TextAnswer | Detections]:
    """Ask about one example, print the answer as text, and write its overlay.

    Args:
        shown: whether the line has the picture's name in front; None prints nothing.

    Returns:
        The record for JSON, with an error where the overlay was not written, and the answer.
    """
    from paligemma.outputs.words import answer_line

    pictures = opened(pg, example, frame)
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
    return record, found


def opened(pg: PaliGemma, example: Example, frame: WhichFrame) -> list[NDArray[Any]]:
    """The pictures of one example: of each of its files the frame, or the frames, chosen."""
    if frame is None or isinstance(frame, int):
        return [pg.open_picture(image, frame=frame) for image in example]
    chosen, reader = None if frame == "all" else frame, pg.processor.reader
    return [picture for image in example for picture in reader.load_frames(image, chosen)]


def _shows_progress(exports: Exports | None) -> bool:
    """Whether a bar is shown: where answers go to files, or are not on the screen themselves."""
    return exports is not None or (sys.stderr.isatty() and not sys.stdout.isatty())


class _NoBar:
    def update(self) -> None: ...
    def clear(self) -> None: ...


def _progress(num_left: int, total: int, *, shown: bool) -> AbstractContextManager[Any]:
    """A bar on standard error with the time left."""
    if not shown:
        return nullcontext(_NoBar())
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=total - num_left, unit="picture", smoothing=0.05)
