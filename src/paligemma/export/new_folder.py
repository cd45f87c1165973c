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
        ConfigError: the target exists with something in it, or cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(
            f"an export goes to a folder that is not there yet, got {str(folder)!r:.200}; name "
            "another, or move that one away"
        )
    require_writable(Path(os.path.abspath(folder)).parent)
    with staging_folder(folder) as staging:
        yield staging
        staging.replace(folder)
