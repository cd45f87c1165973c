"""What commands write: JSON on standard output, pictures with answers on them as files."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer


def echo_json(body: dict[str, Any]) -> None:
    """Print the JSON object of a command; in ASCII where standard output is not UTF-8."""
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
            f"pictures need a folder that can be written, {str(folder)!r} is not one "
            f"({error.strerror}); name another"
        ) from error


def write_overlay(
    path: Path, picture: NDArray[Any], prompt: str, found: TextAnswer | Detections
) -> None:
    """Write the picture with the answer on it, as PNG, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    from paligemma.outputs.draw import draw_text_answer
    from paligemma.outputs.export import save_png
    from paligemma.outputs.types import TextAnswer

    if isinstance(found, TextAnswer):
        save_png(draw_text_answer(picture, found.text, prompt=prompt), path)
    else:
        found.save_png(path, picture)
    click.echo(f"paligemma: wrote {click.format_filename(path)}", err=True)


def overlay_paths(images: Sequence[str], overlay: Path | None) -> Iterator[Path | None]:
    """The file of each picture's overlay, or None where none is wanted.

    Args:
        images: names of the pictures.
        overlay: the file of a single overlay, the folder of several, or None.

    Raises:
        DataError: a file cannot be written there, or two overlays would have the same name.
    """
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
            f"overlays of several pictures need an existing folder, {str(overlay)!r} is not one; "
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
