"""A folder that must not be there yet, and appears whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import ConfigError
from paligemma.one_writer import one_writer
from paligemma.whole_file import remove_unfinished, staging_folder

# Bytes of a name that the name of its lock repeats; file systems allow 255.
_MAX_LOCK = 200


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place when the block succeeds.

    What killed exports to the same place left beside it is removed.

    Raises:
        ConfigError: the target is there, unless as an empty folder that is neither the current one
            nor a mounted disk; or it cannot be written, or another process exports to it.
    """
    shown, folder = folder, Path(os.path.abspath(folder))
    is_empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if os.path.lexists(folder) and not (is_empty and folder != Path.cwd()):
        raise ConfigError(
            f"an export goes to a folder that is not there yet, got {str(shown)!r:.200}; name "
            "another, or move that one away"
        )
    if is_empty and os.path.ismount(folder):
        raise ConfigError(
            f"an export takes the place of its folder, and {str(shown)!r:.200} is where a disk is "
            "mounted; name a folder in it"
        )
    lock = os.fsdecode(os.fsencode(folder.name)[:_MAX_LOCK])
    with one_writer(folder.parent, lock):
        remove_unfinished(folder.parent, re.compile(re.escape(folder.name)))
        with staging_folder(folder) as staging:
            yield staging
            try:
                staging.replace(folder)
            except OSError as error:
                raise ConfigError(
                    f"an export goes to a folder that is not there yet, and {str(shown)!r:.200} "
                    f"appeared meanwhile ({error.strerror}); name another"
                ) from error
