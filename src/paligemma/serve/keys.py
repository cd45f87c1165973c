"""The keys of a server: read from a file, compared in constant time, never shown."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from paligemma.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
_KEY = re.compile(r"[!-9;-~]{8,512}")  # visible ASCII without the colon
_NAME = re.compile(r"[\w.@+-]{1,64}")


class Keys:
    """Who may ask.

    Args:
        keys: name -> key.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """Read a file of keys, one a line, as `name:key` or `key`; `#` starts a remark.

        Raises:
            ConfigError: unreadable, without a key, or with a line that is none.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            text = data.decode("utf-8-sig")  # editors of Windows begin with a byte order mark
            is_open = bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(f"the file of keys {path} cannot be read: {reason}") from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"a file of keys may have {MAX_FILE_BYTES} bytes, {path} has more")
        if is_open:
            logger.warning("others may read %s, which holds keys; chmod 600 it", path)
        found: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            first, colon, second = line.partition(":")
            name, key = (first.strip(), second.strip()) if colon else (f"key-{number}", first)
            if not _KEY.fullmatch(key) or not _NAME.fullmatch(name):
                raise ConfigError(
                    f"line {number} of {path} must be 'name:key' or 'key', a key of 8 to 512 "
                    "visible characters without a colon, a name of letters and digits"
                )
            if name in found or key in found.values():
                raise ConfigError(f"line {number} of {path} has a name or key of a line before it")
            found[name] = key
        if not found:
            raise ConfigError(f"a file of keys has at least one, {path} has none; add a line")
        return cls(found)

    def name_of(self, authorization: str | None) -> str | None:
        """The name of the key in an Authorization header; None where there is no such key.

        All keys are compared, each in constant time. `Basic` is taken too, with the key as the
        password, for tools that know nothing else.
        """
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return None
        elif scheme.lower() != "bearer":
            return None
        digest, found = _digest(given), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def _digest(key: str) -> bytes:
    """Of one length, whatever the key's."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
