"""Pickles that hold only lists, dicts, texts and numbers, read without running what they name.

A pickle is a program that may call any function. RefCOCO is published as two of them, so every
instruction is read first and only those that build plain data are allowed: none can name a
function, a class or an object, and the loader refuses names once more.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from paligemma.errors import DataError

# The largest of the official files has 55 MB.
MAX_PICKLE_BYTES = 512 << 20
MAX_INSTRUCTIONS = 60_000_000

_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_PLAIN = frozenset(
    {
        *("PROTO", "FRAME", "MARK", "STOP", "POP", "POP_MARK", "DUP"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
        *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *_MEMO_WRITES,
        *("MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    }
)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object outside the file")


def read_plain_pickle(path: Path, *, max_bytes: int = MAX_PICKLE_BYTES) -> Any:
    """Read a pickle of plain data, written by Python 2 or 3.

    Args:
        path: path of the file.
        max_bytes: size beyond which a file is refused unread.

    Returns:
        Lists, tuples, dicts, texts, numbers, booleans and None.

    Raises:
        DataError: the file is missing, too large, damaged, or holds anything else.
    """
    try:
        num_bytes = path.stat().st_size
        data = path.read_bytes() if num_bytes <= max_bytes else b""
    except OSError as error:
        raise DataError(f"the pickle {path} cannot be read: {error}") from error
    if num_bytes > max_bytes:
        raise DataError(f"a pickle may have {max_bytes} bytes, {path} has {num_bytes}")
    try:
        _require_plain(data, path)
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except DataError:
        raise
    except Exception as error:  # damaged instructions raise whatever the loader stumbles over
        raise DataError(
            f"{path} is damaged as a pickle ({str(error)[:200]}); download it again"
        ) from error


def _require_plain(data: bytes, path: Path) -> None:
    """Check all instructions without carrying out any."""
    argument: Any
    for number, (instruction, argument, position) in enumerate(pickletools.genops(data)):
        if instruction.name not in _PLAIN:
            raise DataError(
                f"a pickle may hold only lists, dicts, texts and numbers, but byte {position} of "
                f"{path} is {instruction.name}, which can run code or make objects; nothing was "
                "loaded: take the official file, or pass its contents as JSON"
            )
        # The loader makes room for every place up to the highest one.
        is_far = instruction.name in _MEMO_WRITES and argument > number + 1
        if is_far or number >= MAX_INSTRUCTIONS:
            raise DataError(
                f"{path} is no ordinary pickle: byte {position} asks for more memory than the "
                "file needs; take the official file, or pass its contents as JSON"
            )
