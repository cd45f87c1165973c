"""What commands write: JSON on standard output, pictures with answers on them as files."""

from __future__ import annotations

import codecs
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paligemma.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer


def echo_json(body: dict[str, Any]) -> None:
    """Print the JSON object of a command."""
    click.echo(_json(body))


def counted(number: int, thing: str) -> str:
    """ "1 page" or "2,000 pages": a number with the noun that it counts."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _json(body: Any) -> str:
    """JSON in one line; in ASCII where standard output is not UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    return json.dumps(body, ensure_ascii=not is_utf8, allow_nan=False)


def pictures_json(example: Sequence[str], hw: tuple[int, ...]) -> dict[str, Any]:
    """The part of a record that names the pictures of one example.

    Args:
        hw: height and width of the first, pixels.
    """
    names = [click.format_filename(image) for image in example]
    images = {"image": names[0]} if len(names) == 1 else {"images": names}
    return {**images, "width": hw[1], "height": hw[0]}


class JsonResults:
    """The JSON object of one picture, or of several whose results are printed as they come.

    What is printed is complete JSON however the block ends, unless nothing was printed.

    Args:
        model: name of the model.
        many: whether the object has a list of results.
    """

    def __init__(self, model: str, *, many: bool) -> None:
        self._model, self._many, self._begun = model, many, False

    def add(self, record: dict[str, Any]) -> None:
        """Print the result of one picture."""
        if not self._many:
            click.echo(_json({"model": self._model, **record}))
            return
        start = ",\n" if self._begun else f'{{"model": {_json(self._model)}, "results": [\n'
        self._begun = True
        click.echo(start + _json(record), nl=False)

    def __enter__(self) -> JsonResults:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._begun:
            click.echo("\n]}")


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


def overlay_paths(images: Sequence[str], overlay: Path | None) -> list[Path | None]:
    """The file of each picture's overlay, or None where none is wanted.

    Args:
        images: names of the pictures.
        overlay: the file of a single overlay, the folder of several, or None.

    Raises:
        DataError: a file cannot be written there, or two overlays would have the same name.
    """
    if overlay is None:
        return [None] * len(images)
    if len(images) == 1 and not overlay.is_dir():
        if not overlay.parent.is_dir():
            raise DataError(
                f"an overlay needs an existing folder, there is no {str(overlay.parent)!r}; "
                "make it first"
            )
        if overlay.suffix.lower() != ".png":
            raise DataError(f"an overlay is written as .png, got {str(overlay)!r}; rename it")
        paths = [overlay]
    elif not overlay.is_dir():
        raise DataError(
            f"overlays of several pictures need an existing folder, {str(overlay)!r} is not one; "
            "make it first"
        )
    else:
        paths = [overlay / f"{Path(image).stem}.png" for image in images]
    doubled = sorted(path.name for path, count in Counter(paths).items() if count > 1)
    if doubled:
        raise DataError(
            f"overlays are named after their pictures, but {', '.join(doubled[:5])} would be "
            "written twice; ask these pictures apart"
        )
    return list(paths)
