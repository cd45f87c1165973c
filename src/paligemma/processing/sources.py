"""From whatever names or holds an encoded picture to its bytes, within bounds of size and time."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import urllib.parse
from pathlib import Path
from typing import IO, Any

from paligemma.errors import ImageError
from paligemma.processing.fetch import SCHEMES, fetch

_SHOWN = 200  # characters of a name in a message
# How pictures and videos of the common formats begin in base64: JPEG, PNG, GIF, RIFF, TIFF, BMP,
# and boxes of a length below 64 kB.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk", "AAAA", "GkXfo")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")
_URL_SAFE = str.maketrans("-_", "+/")


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
        read = _read_stream(source, name, max_bytes)
        if not read:
            raise ImageError(
                f"a stream must have a picture left to read, {name!r} is at its end; seek(0) first"
            )
        return read, name
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            "a picture must be a path, bytes, a binary stream, a Pillow image, an array or a "
            f"tensor, got {type(source).__name__:.80}"
        )
    text = os.fsdecode(source)
    if not text:
        raise ImageError("a picture must be an existing file, got an empty name; check the path")
    name = shown_name(text)
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
    path = _path(text)
    if not os.path.lexists(path) and (data := from_base64(text, max_bytes)) is not None:
        return data, f"base64 of {len(text)} characters"
    return _read_file(path, name, max_bytes), name


def shown_name(text: str) -> str:
    """A name as messages show it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def regular_file(source: Any) -> Path | None:
    """The file on a disk that a source names; None for a pipe, an address, or what is not there."""
    if not isinstance(source, str | os.PathLike):
        return None
    path = _path(os.fsdecode(source))
    return path if os.path.isfile(path) else None


def is_there(text: str) -> bool:
    """Whether a text names a file, or holds a picture itself."""
    return (
        regular_file(text) is not None
        or text[:5].lower() == "data:"
        or from_base64(text, len(text)) is not None
    )


def heading_of(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file; none where it cannot be read, which its reader will report."""
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError:
        return b""


def _path(text: str) -> Path:
    if text[:7].lower() == "file://":
        text = urllib.parse.unquote(text[len("file://") :].removeprefix("localhost"))
    return Path(text)


def from_base64(text: str, max_bytes: int) -> bytes | None:
    """The bytes of a picture or video that is given as base64 alone; None where the text is none.

    Raises:
        ImageError: more bytes than allowed.
    """
    start = text[:64].translate(_URL_SAFE).lstrip()
    if not start.startswith(_BASE64_STARTS) or not _BASE64.fullmatch(text):
        return None
    require_size(len(text) * 3 // 4 - 2, "base64", max_bytes)
    try:
        return _decoded(text)
    except (binascii.Error, ValueError):
        return None


def _decoded(text: str) -> bytes:
    """Bytes of base64, of either alphabet, in lines or in one, with or without its padding."""
    plain = "".join(text.translate(_URL_SAFE).split())
    return base64.b64decode(plain + "=" * (-len(plain) % 4))


def _read_file(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise ImageError(
                f"a picture must be a file, {name} is a folder or a device; detect_many, "
                "ask_many and the commands take folders"
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
        raise ImageError(f"the picture {name!r} cannot be read: {reason}") from error


def _read_stream(stream: IO[bytes], name: str, max_bytes: int) -> bytes:
    data = bytearray()
    while len(data) <= max_bytes:  # pipes and responses give a part at a time
        try:
            piece = stream.read(max_bytes + 1 - len(data))
        except Exception as error:  # a stream of the caller's raises whatever it likes
            said = f"{str(error)[:_SHOWN] or type(error).__name__}"
            raise ImageError(f"the picture {name!r} cannot be read: {said}") from error
        if not isinstance(piece, bytes):
            raise ImageError(
                f"a picture is read from a stream of bytes, {name!r} gives "
                f"{type(piece).__name__:.80}; open it rb"
            )
        if not piece:
            break
        data += piece
    require_size(len(data), name, max_bytes)
    return bytes(data)


def _from_data_address(text: str, max_bytes: int) -> bytes:
    heading, _, body = text.partition(",")
    require_size(len(body) * 3 // 4, "a data address", max_bytes)
    try:
        if heading.lower().endswith(";base64"):
            return _decoded(urllib.parse.unquote(body))
        return urllib.parse.unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"a data address must hold base64, {heading[:_SHOWN]!r} does not ({error})"
        ) from error
