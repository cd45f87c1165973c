"""The bytes of pictures: data URLs, base64, uploads, and those that were sent before."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import OrderedDict

from paligemma.serve.errors import ServeError

_DATA_URL = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*?(?P<b64>;base64)?,")


def picture_bytes(text: str, param: str = "image") -> bytes:
    """The bytes of a data URL, or of plain base64.

    Raises:
        ServeError: neither.
    """
    if text[:5].lower() == "data:":
        head = _DATA_URL.match(text[:200], 0)
        if head is None or head["b64"] is None:
            raise ServeError(
                "a data URL of a picture is 'data:image/png;base64,…', got another",
                code="invalid_image",
                param=param,
            )
        text = text[head.end() :]
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", text):
        scheme = text.split(":", 1)[0][:20]
        raise ServeError(
            f"pictures come as data URLs or uploads, got an address ({scheme}:); remote pictures "
            "are off here, send the picture itself",
            code="remote_image_off",
            param=param,
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ServeError(
            "the picture is not valid base64; send 'data:image/png;base64,…' or a file",
            code="invalid_image",
            param=param,
        ) from None
    if not data:
        raise ServeError("the picture is empty; send its bytes", code="invalid_image", param=param)
    return data


class KeptPictures:
    """Pictures as they were sent, by their content, for the client that sent them.

    Args:
        max_bytes: bound of all together; those asked for last stay.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def keep(self, client: str, data: bytes) -> str:
        """Keep a picture; returns its id."""
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        key = client, name
        if key in self._kept:
            self._kept.move_to_end(key)
        elif len(data) <= self._max_bytes:
            self._kept[key] = data
            self._num_bytes += len(data)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= len(self._kept.popitem(last=False)[1])
        return name

    def find(self, client: str, name: str) -> bytes:
        """A picture by its id.

        Raises:
            ServeError: it is not kept, or another client sent it.
        """
        data = self._kept.get((client, name))
        if data is None:
            raise ServeError(
                f"no picture {name!r:.80} is kept; send it again",
                status=404,
                code="image_not_found",
                param="image_id",
            )
        self._kept.move_to_end((client, name))
        return data
