"""The bytes of pictures: data URLs, base64, uploads, and those that were sent before."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import urllib.parse
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from paligemma.serve.errors import ServeError
from paligemma.serve.options import ServerOptions
from paligemma.serve.remote import Remote
from paligemma.serve.roots import Roots

_NUM_THREADS = 4
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
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
    elif scheme := _SCHEME.match(text):
        raise ServeError(
            f"pictures come as data URLs or uploads, got an address ({scheme[1][:20]}:); send the "
            "picture itself",
            code="invalid_image",
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


class Sources:
    """Reads pictures from what requests name them by, in threads of its own.

    Args:
        remote: fetches addresses.
        roots: reads files.
    """

    def __init__(self, remote: Remote, roots: Roots) -> None:
        self.remote, self._roots = remote, roots
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fetcher")

    @classmethod
    def of(cls, options: ServerOptions) -> Sources:
        """Those that a server may use."""
        remote = Remote(
            options.remote_hosts, timeout_s=options.fetch_s, max_bytes=options.max_body_bytes
        )
        return cls(remote, Roots(options.media_roots, names_folders=False))

    async def read(self, texts: Sequence[str], param: str) -> list[bytes]:
        """The bytes of data URLs, of base64, of addresses or of files.

        Raises:
            ServeError: not one of these, or one that is not allowed here.
            ImageError: not there, or not readable.
        """
        loop = asyncio.get_running_loop()
        return [
            await loop.run_in_executor(self._threads, self._read, text, param) for text in texts
        ]

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, text: str, param: str) -> bytes:
        scheme = _SCHEME.match(text)
        kind = scheme[1].lower() if scheme else "data"
        if kind == "file":
            if not self._roots.folders:
                raise ServeError(
                    "files are off here; send the picture itself, as a data URL or upload",
                    code="file_off",
                    param=param,
                )
            path = text[len("file:") :]
            if path.startswith("//"):
                path = path[2:].removeprefix("localhost")
            return self._roots.read(urllib.parse.unquote(path))
        if kind in ("http", "https"):
            return self.remote.fetch(text, param)
        return picture_bytes(text, param)


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
