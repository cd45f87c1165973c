"""A folder that must not be there yet, and appears whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import ConfigError, PaliGemmaError, RunError
from paligemma.one_writer import one_writer
from paligemma.whole_file import NO_ROOM, remove_unfinished, staging_folder

# Bytes of a name that the name of its lock repeats; file systems allow 255.
_MAX_LOCK = 200
# A disk with less room is full: files of an export have more.
_FULL_BYTES = 1 << 20


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place when the block succeeds.

    What killed exports to the same place left beside it is removed.

    Raises:
        ConfigError: the target is there, unless as an empty folder that is neither the current one
            nor a mounted disk; or it cannot be written, or another process exports to it.
        RunError: the disk became full.
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
            try:
                yield staging
            except (PaliGemmaError, OSError):  # which name a full disk themselves
                raise
            except Exception as error:
                # What writes natively fails in many ways, or reads half a file back.
                is_full = any(f"(os error {number})" in str(error) for number in NO_ROOM)
                if is_full or shutil.disk_usage(staging).free < _FULL_BYTES:
                    raise RunError(
                        f"an export to {str(shown)!r:.200} needs more room than its disk has; make "
                        "room, or name a folder on another disk"
                    ) from error
                raise
            try:
                staging.replace(folder)
            except OSError as error:
                raise ConfigError(
                    f"an export goes to a folder that is not there yet, and {str(shown)!r:.200} "
                    f"appeared meanwhile ({error.strerror}); name another"
                ) from error
