"""A folder that must not be there yet, and appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import ConfigError
from paligemma.whole_file import require_writable, staging_folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place when the block succeeds.

    Raises:
        ConfigError: the target is there, unless as an empty folder that is not the current one, or
            cannot be written.
    """
    shown, folder = folder, Path(os.path.abspath(folder))
    is_empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if os.path.lexists(folder) and not (is_empty and folder != Path.cwd()):
        raise ConfigError(
            f"an export goes to a folder that is not there yet, got {str(shown)!r:.200}; name "
            "another, or move that one away"
        )
    require_writable(folder.parent)
    with staging_folder(folder) as staging:
        yield staging
        staging.replace(folder)
