"""Checks of the pictures that a command line names: present, and not overwritten."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import ModelChoice
from paligemma.errors import DataError, ImageError
from paligemma.whole_file import require_free

_URL_SCHEMES = ("http://", "https://")
# Suffixes of the formats that `processing.image` reads; a prompt seldom ends in one.
_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jp2", ".avif", ".ico", ".tga", ".pcx"),
}


class ImagesArgument(click.Argument):
    """Names of pictures before a text; recognises that the text is missing."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Take a picture in the place of the text as a sign that the text is missing.

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


def _is_pipe(image: str) -> bool:
    """Whether it is a named pipe, or standard input at the end of one."""
    try:
        return stat.S_ISFIFO(os.stat(image).st_mode)
    except (OSError, ValueError):
        return False


def require_pictures(images: Iterable[str], model: ModelChoice) -> None:
    """Check the names of pictures before a model is loaded.

    Raises:
        ImageError: a file is missing, or a URL is given without --allow-url.
    """
    missing = []
    for image in images:
        if image.lower().startswith(_URL_SCHEMES):
            if not model.options.get("allow_url"):
                raise ImageError(
                    f"a picture is fetched from a URL only when asked, got {image[:200]!r}; "
                    "add --allow-url or download it first"
                )
        elif not os.path.isfile(image) and not _is_pipe(image):
            missing.append(click.format_filename(image))
    if missing:
        raise ImageError(
            f"a picture must be an existing file, there is no file {' and no '.join(missing)}; "
            "check the path"
        )


def require_kept(images: Sequence[str], written: Iterable[Path], *, overwrite: bool) -> None:
    """Check that no file to be written replaces a picture asked about, or another file of the
    user's.

    Args:
        images: names of the pictures.
        written: files to be written.
        overwrite: the user's leave for other files than these pictures.

    Raises:
        DataError: a file to be written is one of the pictures, under whatever name.
        ConfigError: see `require_free`.
    """
    asked = {os.path.realpath(image) for image in images}
    for path in written:
        if os.path.realpath(path) in asked:
            raise DataError(
                f"pictures asked about are kept, and {str(path)!r} is one of them; "
                "name another file or folder to write"
            )
        require_free(path, overwrite=overwrite)
