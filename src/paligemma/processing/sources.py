"""From whatever names or holds an encoded picture to its bytes, within bounds of size and time."""

from __future__ import annotations

import base64
import binascii
import os
import stat
import urllib.parse
from pathlib import Path
from typing import IO, Any

from paligemma.errors import ImageError
from paligemma.processing.fetch import SCHEMES, fetch

_SHOWN = 200  # characters of a name in a message


def require_size(num_bytes: int, name: str, max_bytes: int) -> None:
    """Raises ImageError for more bytes than allowed."""
    if num_bytes > max_bytes:
        raise ImageError(
            f"an encoded picture may have {max_bytes} bytes, {name} has {num_bytes}; "
            "save it smaller"
        )


def encoded_bytes(
    source: Any, *, allow_url: bool, timeout_s: float, max_bytes: int
) -> tuple[bytes, str]:
    """The bytes of a picture, and what messages call it.

    Args:
        source: bytes, a binary stream, a path, a data: or file: address, or a URL.
        allow_url: whether URLs may be fetched.
        timeout_s: bound of fetching one.
        max_bytes: bound of the result.

    Raises:
        ImageError: not there, not readable, not allowed, or too large.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), f"a picture of {len(source)} bytes"
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "a stream"))[:_SHOWN]
        return _read_stream(source, name, max_bytes), name
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            "a picture must be a path, bytes, a binary stream, a Pillow image, an array or a "
            f"tensor, got {type(source).__name__}"
        )
    text = os.fspath(source)
    name = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
    scheme = text[:8].lower() if isinstance(source, str) else ""
    if scheme.startswith(SCHEMES):
        if not allow_url:
            raise ImageError(
                f"a picture is fetched from a URL only when asked, got {name!r}; "
                "pass allow_url=True or download it first"
            )
        return fetch(text, timeout_s, lambda size: require_size(size, name, max_bytes)), name
    if scheme.startswith("data:"):
        return _from_data_address(text, max_bytes), f"a data address of {len(text)} characters"
    if scheme.startswith("file://"):
        text = urllib.parse.unquote(text[len("file://") :].removeprefix("localhost"))
    return _read_file(Path(text), name, max_bytes), name


def _read_file(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise ImageError(
                f"a picture must be a file, {name} is a folder or a device; check the path"
            )
        require_size(path.stat().st_size, name, max_bytes)
        with path.open("rb") as file:
            return _read_stream(file, name, max_bytes)
    except FileNotFoundError as error:
        raise ImageError(
            f"a picture must be an existing file, there is no file {name}; check the path"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or str(error)[:_SHOWN]
        hint = "; decode base64 to bytes first" if len(str(path)) > 2 * _SHOWN else ""
        raise ImageError(f"the picture {name!r} cannot be read: {reason}{hint}") from error


def _read_stream(stream: IO[bytes], name: str, max_bytes: int) -> bytes:
    try:
        data = stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"the picture {name!r} cannot be read: {str(error)[:_SHOWN]}") from error
    if not isinstance(data, bytes):
        raise ImageError(f"a picture is read from a binary stream, {name!r} gives text; open it rb")
    require_size(len(data), name, max_bytes)
    return data


def _from_data_address(text: str, max_bytes: int) -> bytes:
    heading, _, body = text.partition(",")
    require_size(len(body) * 3 // 4, "a data address", max_bytes)
    try:
        if heading.lower().endswith(";base64"):
            return base64.b64decode(urllib.parse.unquote(body), validate=False)
        return urllib.parse.unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"a data address must hold base64, {heading[:_SHOWN]!r} does not ({error})"
        ) from error
