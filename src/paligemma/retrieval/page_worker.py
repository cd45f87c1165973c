"""The process that draws the pages of a PDF, from outside: started, asked, and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paligemma.errors import ImageError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

_MAX_LINE = 1 << 16
_MAX_TEXT_BYTES = 1 << 16


class PdfFailed(Exception):
    """The process ended or did not answer; the text says which."""


class PdfPages:
    """An opened PDF; a context manager that ends its process.

    Args:
        path: of the file.
        password: of a locked file.
        timeout_s: time for opening it, and for each page.

    Raises:
        ImageError: it is no PDF, or locked.
        MissingExtraError: pypdfium2 is not installed.
        PdfFailed: the process ended.
    """

    def __init__(self, path: str, password: str | None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        places = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
        self._process = subprocess.Popen(
            # Without -P the current folder would come first among the places of modules.
            [sys.executable, "-P", "-m", "paligemma.retrieval.page_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(one for one in places if one)},
            start_new_session=True,  # what ends this program by the keyboard is handled here
        )
        try:
            body, _ = self._ask({"path": os.path.abspath(path), "password": password})
        except BaseException:
            self.close()
            raise
        if "error" in body:
            self.close()
            _refuse(str(body["error"]), password)
        self.num_pages = int(body["num_pages"])

    def draw(self, page: int, size_px: int, max_pixels: int) -> tuple[Image.Image, str]:
        """A page and the start of its text.

        Args:
            page: its number, from 0.
            size_px: shorter side of the picture.
            max_pixels: bound of the picture, which is drawn smaller to keep it.

        Raises:
            ImageError: the page cannot be drawn; others may.
            PdfFailed: the process ended.
        """
        from PIL import Image

        body, parts = self._ask({"page": page, "size_px": size_px, "max_pixels": max_pixels})
        if "error" in body:
            raise ImageError(f"the page cannot be drawn: {body['error']!s:.300}")
        text, pixels = parts
        picture = Image.frombytes("RGB", (body["width"], body["height"]), pixels)
        return picture, text.decode("utf-8", "replace")

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The answer to a line, within the time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(self._timeout_s, give_up)
        timer.start()
        try:
            with suppress(OSError):  # its end, which is read below
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
            line = stdout.readline(_MAX_LINE)
            body = json.loads(line) if line.endswith(b"\n") else None
            parts = []
            if body is not None and "width" in body:
                sizes = (body["text"], body["width"] * body["height"] * 3)
                if sizes[0] > _MAX_TEXT_BYTES or sizes[1] > 3 * (request["max_pixels"] + 100_000):
                    raise PdfFailed("it answered with more than was asked for")
                parts = [stdout.read(size) for size in sizes]
                if [len(part) for part in parts] != list(sizes):
                    body = None
        finally:
            timer.cancel()
        if is_late.is_set():
            raise PdfFailed(f"it took longer than {self._timeout_s:g} s; allow more with --timeout")
        if body is None:
            status = self._process.wait()
            raise PdfFailed(f"its process ended with status {status}; the file may be damaged")
        return body, parts

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # what it did not read
                    stream.close()

    def __enter__(self) -> PdfPages:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _refuse(reason: str, password: str | None) -> None:
    """Say why a file cannot be opened."""
    if reason == "missing":
        raise MissingExtraError(
            "PDFs are drawn by pypdfium2; install it with pip install 'paligemma[retrieval]'"
        )
    if "password" in reason.lower():
        what = "another password than the one given" if password else "a password"
        raise ImageError(f"the file is locked and needs {what}; give it with --password")
    raise ImageError(f"a PDF must be whole, this one cannot be opened ({reason[:300]})")
