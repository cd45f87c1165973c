"""Folders whose pictures may be read by name, and nothing beside them."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from paligemma.errors import ConfigError, ImageError
from paligemma.processing.image import MAX_ENCODED_BYTES, URL_TIMEOUT_S
from paligemma.processing.sources import encoded_bytes

_SHOWN = 200  # characters of a name in a message


class Roots:
    """Reads files below some folders, after all links of their names are followed.

    Args:
        folders: none, and nothing is read.
        names_folders: whether errors name them; strangers need not know the paths of the disk.

    Raises:
        ConfigError: one is no folder.
    """

    def __init__(self, folders: Sequence[Path], *, names_folders: bool = True) -> None:
        named = [Path(folder).expanduser() for folder in folders]  # no shell may have done so
        for folder in named:
            if not folder.is_dir():
                raise ConfigError(
                    f"a root must be a folder, {str(folder)!r} is none; make it first"
                )
        self.folders = tuple(folder.resolve() for folder in named)
        self._names_folders = names_folders

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Args:
            name: its path, absolute, from `~/`, or below one of the folders.

        Raises:
            ImageError: it lies elsewhere, which is said whether it is there or not; it is no file,
                too large, or not readable.
        """
        shown = repr(name[:_SHOWN])
        if not self.folders:
            raise ImageError(
                f"files are read only below a root, and this server has none, got {shown}; "
                "send the picture itself, or start the server with --root"
            )
        allowed = [path for folder in self.folders if (path := self._below(folder, name))]
        if not allowed:
            roots = ", ".join(str(folder) for folder in self.folders)
            named = f" ({roots[:1000]})" if self._names_folders else ""
            raise ImageError(
                f"a picture must lie below a root of this server{named}, {shown} does not; copy "
                "it there"
            )
        for path in allowed:
            try:
                with open(path, "rb", opener=_opened_no_link) as file:
                    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        return encoded_bytes(
                            file,
                            allow_url=False,
                            timeout_s=URL_TIMEOUT_S,
                            max_bytes=MAX_ENCODED_BYTES,
                        )[0]
            except OSError:
                continue
        raise ImageError(
            f"a picture must be an existing file, there is none that can be read as {shown}; "
            "check the path"
        )

    def holds(self, path: Path) -> bool:
        """Whether a file lies below one of the folders, as far as its name tells."""
        return any(self._below(folder, str(path)) for folder in self.folders)

    def _below(self, folder: Path, name: str) -> Path | None:
        """The file that a name stands for, if it lies below the folder."""
        try:
            # A home is that of the server: agents repeat what users write.
            path = (folder / (Path(name).expanduser() if name[:2] == "~/" else name)).resolve()
        except (OSError, ValueError, RuntimeError):  # a circle of links, or NUL in the name
            return None
        return path if path != folder and path.is_relative_to(folder) else None


def _opened_no_link(path: str, flags: int) -> int:
    """Opens what was resolved before: a link in its place is refused, and a pipe does not block."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
