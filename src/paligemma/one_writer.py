"""One writer a folder or a file: whoever comes second is told who writes there.

The writer holds the lock of a file in the folder, which the kernel releases however the process
ends, and removes the file when it is done.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paligemma.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_FILE = ".writer"
_MAX_NOTE_BYTES = 200
# Locks of this process, which its forks must not hold on to when it is killed.
_held: set[int] = set()


@contextmanager
def one_writer(folder: Path, name: str = "") -> Iterator[None]:
    """Keep other writers out of a folder, made with its parents, until the block ends.

    A folder that it made is removed again if nothing was written to it.

    Args:
        name: name of a file in the folder; keeps other writers out of this file alone.

    Raises:
        ConfigError: another process writes there, or the folder cannot be made or written.
    """
    path = folder / (f".{name}{LOCK_FILE}" if name else LOCK_FILE)
    is_new = not os.path.lexists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, folder / name)
    except OSError as error:
        raise ConfigError(
            f"a result needs a folder that can be written, got {folder} "
            f"({error.strerror or error}); name another place"
        ) from error
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a fork, which holds nothing
            _held.remove(descriptor)
            with suppress(OSError):  # Removed while it is locked: see `_lock`.
                path.unlink()
                if is_new:
                    folder.rmdir()
            os.close(descriptor)


def _lock(path: Path, place: Path) -> int:
    """Open and lock the file at `path`, however often its last writer removes it meanwhile.

    Args:
        place: what it keeps others out of, for the error.
    """
    while True:
        # A link at this name is refused, so that nothing elsewhere is opened for writing.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _take(descriptor, place)
            if _is_at(path, descriptor):
                note = f"process {os.getpid()} on {socket.gethostname()}"
                note += time.strftime(", since %Y-%m-%d %H:%M:%S")
                with suppress(OSError):  # The lock holds on a full disk, too.
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, note.encode()[:_MAX_NOTE_BYTES])
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(descriptor: int, place: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows; there two writers are the user's own care
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        note = os.read(descriptor, _MAX_NOTE_BYTES).decode("utf-8", "replace")
        who = "".join(filter(str.isprintable, note))
        raise ConfigError(
            f"another process is writing to {place}{f': {who}' if who else ''}; wait for it or "
            "name another place"
        ) from error
    except OSError as error:
        logger.warning(
            "%s is on a file system without locks (%s); let only one process write to it",
            place,
            error.strerror,
        )


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _let_go() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
