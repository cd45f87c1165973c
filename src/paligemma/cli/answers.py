"""Asking pictures one after the other, and showing what came back."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.cli import EXIT_BAD_INPUT
from paligemma.cli.options import ModelChoice, OutputChoice
from paligemma.cli.pictures import require_kept, require_pictures
from paligemma.errors import DataError, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.pipeline.pictures import EncodedImage

Ask = Callable[["PaliGemma", "EncodedImage"], "TextAnswer | Detections"]
Example = tuple[str, ...]  # one picture, or the frames of one example


def answer_each(
    examples: Sequence[Example],
    prompt: str,
    ask: Ask,
    *,
    model: ModelChoice,
    output: OutputChoice,
    greedy: bool,
) -> list[TextAnswer | Detections]:
    """Ask every example the same and show the answers.

    Of several, one that cannot be read or drawn leaves the others as they are; the program then
    ends with 2 all the same.

    Args:
        examples: paths, or addresses where the model was told to allow them.
        prompt: for the record; `ask` holds it already.
        greedy: `ask` draws no random numbers.

    Returns:
        The answers there are.

    Raises:
        PaliGemmaError: bad input, before any work; later only where there is a single example.
    """
    from paligemma.outputs.words import answer_line

    # A bad prompt or path is known before a large model is loaded.
    check_prompt(prompt)
    images = [image for example in examples for image in example]
    require_pictures(images, model)
    overlays = list(_overlay_paths([example[0] for example in examples], output.overlay))
    require_kept(images, filter(None, overlays))
    pg = model.load(greedy=greedy)
    records = []
    answers = []
    failed = False
    for example, overlay in zip(examples, overlays, strict=True):
        name = click.format_filename(example[0]) if len(examples) > 1 else None
        try:
            pictures = [pg.open_picture(image) for image in example]
            found = ask(pg, pg.encode_image(pictures if len(pictures) > 1 else pictures[0]))
        except ImageError as error:
            if name is None:
                raise
            failed = True
            click.echo(f"paligemma: {error}", err=True)
            records.append({"image": name, "prompt": prompt, "error": str(error)})
            continue
        answers.append(found)
        shown = _pictures_json(example, pictures[0].shape[:2])
        record = {**shown, "prompt": prompt, **found.to_json()}
        records.append(record)
        if not output.as_json:
            click.echo(str(found) if name is None else f"{name}: {answer_line(found)}")
        if overlay is not None:
            try:
                write_overlay(overlay, pictures[0], prompt, found)
            except DataError as error:
                failed = True
                click.echo(f"paligemma: {error}", err=True)
                record["error"] = str(error)
    if output.as_json:
        body = records[0] if len(records) == 1 else {"results": records}
        echo_json({"model": model.name, **body})
    if failed:
        raise click.exceptions.Exit(EXIT_BAD_INPUT)
    return answers


def check_prompt(prompt: str) -> None:
    """Check a typed prompt, and warn where it names nothing to look for.

    Raises:
        PromptError: see `clean_prompt`.
    """
    from paligemma.processing.prompts import clean_prompt, object_prompt

    # The blank makes a prompt of the first word alone an object prompt without labels.
    asked = object_prompt(clean_prompt(prompt)[0] + " ")
    if asked and not asked.labels:
        click.echo(
            f"paligemma: the prompt names nothing to {asked.task}; write '{asked.task} cat ; dog'",
            err=True,
        )


def _pictures_json(example: Example, hw: tuple[int, ...]) -> dict[str, Any]:
    names = [click.format_filename(image) for image in example]
    images = {"image": names[0]} if len(names) == 1 else {"images": names}
    return {**images, "width": hw[1], "height": hw[0]}


def echo_json(body: dict[str, Any]) -> None:
    """The one object of a `--json` command, on standard output; ASCII where that is not UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    click.echo(json.dumps(body, ensure_ascii=not is_utf8, allow_nan=False))


def make_folder(folder: Path) -> None:
    """Make a folder for pictures unless it is there.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"pictures need a folder that can be written, {str(folder)!r} is none "
            f"({error.strerror}); name another"
        ) from error


def write_overlay(
    path: Path, picture: NDArray[Any], prompt: str, found: TextAnswer | Detections
) -> None:
    """The picture with the answer on it, as PNG, whole or not at all."""
    from paligemma.outputs.draw import draw_text_answer
    from paligemma.outputs.export import save_png
    from paligemma.outputs.types import TextAnswer

    if isinstance(found, TextAnswer):
        save_png(draw_text_answer(picture, found.text, prompt=prompt), path)
    else:
        found.save_png(path, picture)
    click.echo(f"paligemma: wrote {click.format_filename(path)}", err=True)


def _overlay_paths(images: Sequence[str], overlay: Path | None) -> Iterator[Path | None]:
    """Where each overlay goes; a fault is found before any work is done."""
    if overlay is None:
        yield from [None] * len(images)
        return
    if len(images) == 1 and not overlay.is_dir():
        if overlay.suffix.lower() != ".png":
            raise DataError(f"an overlay is written as .png, got {str(overlay)!r}; rename it")
        if not overlay.parent.is_dir():
            raise DataError(
                f"an overlay needs an existing folder, there is no {str(overlay.parent)!r}; "
                "make it first"
            )
        yield overlay
        return
    if not overlay.is_dir():
        raise DataError(
            f"overlays of several pictures need an existing folder, {str(overlay)!r} is none; "
            "make it first"
        )
    names = [f"{Path(image).stem}.png" for image in images]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            f"overlays are named after their pictures, but {', '.join(doubled)} would be written "
            "twice; ask these pictures apart"
        )
    yield from (overlay / name for name in names)
