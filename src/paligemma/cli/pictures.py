"""Pictures on the command line: which words name them, that they are there, that they stay."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import ModelChoice
from paligemma.errors import DataError, ImageError

_URL_SCHEMES = ("http://", "https://")
# Endings of the formats that `processing.image` reads; a prompt seldom ends so.
_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jp2", ".avif", ".ico", ".tga", ".pcx"),
}


class ImagesArgument(click.Argument):
    """Picture names before a text: notices that the text was left out."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """As click does it, but a picture in the place of the text means that the text is missing.

        Raises:
            click.MissingParameter: the last word names an existing picture.
        """
        arguments = [one for one in ctx.command.params if isinstance(one, click.Argument)]
        following = arguments[arguments.index(self) + 1 :]
        if following and not ctx.resilient_parsing:
            text = opts.get(following[0].name or "")
            if isinstance(text, str) and _is_picture_file(text):
                name = click.format_filename(text)
                raise click.MissingParameter(f"{name!r} is a picture", ctx=ctx, param=following[0])
        return super().handle_parse_result(ctx, opts, args)


def _is_picture_file(text: str) -> bool:
    return os.path.splitext(text)[1].lower() in _SUFFIXES and os.path.isfile(text)


def require_pictures(images: Iterable[str], model: ModelChoice) -> None:
    """Find what is wrong with names of pictures before a model is loaded.

    Raises:
        ImageError: files that are not there, or an address without --allow-url.
    """
    missing = []
    for image in images:
        if image.lower().startswith(_URL_SCHEMES):
            if not model.options.get("allow_url"):
                raise ImageError(
                    f"a picture is fetched from a URL only when asked, got {image[:200]!r}; "
                    "add --allow-url or download it first"
                )
        elif not os.path.isfile(image):
            missing.append(click.format_filename(image))
    if missing:
        which = (
            f"{missing[0]} is none" if len(missing) == 1 else f"{' and '.join(missing)} are none"
        )
        raise ImageError(f"a picture must be an existing file, {which}; check the path")


def require_kept(images: Sequence[str], written: Iterable[Path]) -> None:
    """Check that no file to be written is one of the pictures asked about.

    Raises:
        DataError: it is one, whatever its name there.
    """
    asked = {os.path.realpath(image) for image in images}
    for path in written:
        if os.path.realpath(path) in asked:
            raise DataError(
                f"pictures asked about are kept, and {str(path)!r} is one of them; "
                "name another file or folder to write"
            )
