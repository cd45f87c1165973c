"""Who has an index in a folder open: several that read, or one that writes.

Qdrant Edge repairs files when it opens them, so nobody opens an index while another writes to it.
The kernel releases the locks however a process ends.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from paligemma.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_FILE = ".open"
WAIT_S = 2.0
_PAUSE_S = 0.05


class FolderLock:
    """The lock of one opened index.

    Args:
        folder: exists, or is made.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self._descriptor: int | None = os.open(folder / LOCK_FILE, flags, 0o666)
        except OSError as error:
            raise ConfigError(
                f"an index needs a folder that can be written, got {folder} "
                f"({error.strerror or error}); name another place"
            ) from error

    def alone(self, wait_s: float = WAIT_S) -> bool:
        """Take the folder for this process alone; False while another has it."""
        return self._take(exclusive=True, wait_s=wait_s)

    def together(self, wait_s: float = WAIT_S) -> bool:
        """Share the folder with others that read; False while another writes."""
        return self._take(exclusive=False, wait_s=wait_s)

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, *, exclusive: bool, wait_s: float) -> bool:
        try:
            import fcntl
        except ImportError:  # not on Windows; there other processes are the user's own care
            return True
        assert self._descriptor is not None
        end = time.monotonic() + wait_s
        while True:
            try:
                kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
                fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
                return True
            except (BlockingIOError, PermissionError):
                if time.monotonic() > end:
                    return False
                time.sleep(_PAUSE_S)
            except OSError as error:
                logger.warning(
                    "%s is on a file system without locks (%s); let only one process open it",
                    self._folder,
                    error.strerror,
                )
                return True
