"""Checks of the pictures that a command line names: present, and not overwritten."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from paligemma.cli.options import ModelChoice
from paligemma.errors import DataError, ImageError
from paligemma.processing.folders import files_of, is_picture_name
from paligemma.whole_file import require_free

_URL_SCHEMES = ("http://", "https://")
_ROOTS = "paligemma.roots"
NAMED_LABELS = "named_labels"  # of the option --labels


class ImagesArgument(click.Argument):
    """Names of pictures before a text; recognises that the text is missing."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Any, args: list[str]
    ) -> tuple[Any, list[str]]:
        """Take a picture in the place of the text as a sign that the text is missing.

        Raises:
            click.MissingParameter: the last word names an existing picture.
        """
        arguments = [one for one in ctx.command.params if isinstance(one, click.Argument)]
        following = arguments[arguments.index(self) + 1 :]
        if (named := opts.get(NAMED_LABELS)) and isinstance(last := opts.get("labels"), str):
            before = opts.get("images")  # what click holds for no word is no tuple
            words = (*(before if isinstance(before, tuple | list) else ()), last)
            opts.update(images=words, labels=" ; ".join(named))
            return super().handle_parse_result(ctx, opts, args)
        if following and not ctx.resilient_parsing:
            text = opts.get(following[0].name or "")
            if isinstance(text, str) and _is_picture_file(text):
                name = click.format_filename(text)
                kind = "folder" if os.path.isdir(text) else "picture"
                said = f"{name!r} is a {kind}"
                raise click.MissingParameter(said, ctx=ctx, param=following[0])
        return super().handle_parse_result(ctx, opts, args)


def _is_picture_file(text: str) -> bool:
    is_folder = text.endswith(os.sep) and os.path.isdir(text)
    return is_folder or (is_picture_name(text) and os.path.isfile(text))


def expanded(ctx: click.Context, _: click.Parameter, names: Sequence[str]) -> tuple[str, ...]:
    """The pictures that the words of a command name: files, "-", folders and patterns."""
    found: list[str] = []
    for name in names:
        files = files_of(name)
        is_folder = os.path.isdir(name)
        found += ["/dev/stdin" if name == "-" else name] if files is None else files
        folders = [name] if is_folder else [os.path.dirname(one) or "." for one in files or [name]]
        ctx.meta.setdefault(_ROOTS, []).extend(folders)
    return tuple(found)


def roots_of_pictures() -> list[str]:
    """Folders that hold the pictures of this command."""
    return list(click.get_current_context().meta.get(_ROOTS, ()))


def _is_pipe(image: str) -> bool:
    """Whether it is a named pipe, or standard input at the end of one."""
    try:
        return stat.S_ISFIFO(os.stat(image).st_mode)
    except (OSError, ValueError):
        return False


def require_pictures(images: Collection[str], model: ModelChoice, *, every: bool = True) -> None:
    """Check the names of pictures before a model is loaded.

    Args:
        every: whether one that is missing is an error; else that all are.

    Raises:
        ImageError: a file is missing, or a URL is given without --allow-url.
    """
    from paligemma.processing.sources import is_there

    missing = []
    for image in images:
        if image.lower().startswith(_URL_SCHEMES):
            if not model.options.get("allow_url"):
                raise ImageError(
                    f"a picture is fetched from a URL only when asked, got {image[:200]!r}; "
                    "add --allow-url or download it first"
                )
        elif not _is_pipe(image) and not is_there(image):
            missing.append(click.format_filename(image))
    if missing and (every or len(missing) == len(images)):
        shown = " and no ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        raise ImageError(
            f"a picture must be an existing file, there is no file {shown}; check the path"
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
