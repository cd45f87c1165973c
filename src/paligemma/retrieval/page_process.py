"""Draws the pages of one PDF, as a process of its own: what a hostile file does ends with it.

    python -m paligemma.retrieval.page_process

Reads lines of JSON on standard input: first {"path", "password"}, then for each page
{"page", "size_px", "max_pixels"}. Answers each with a line of JSON, and a page with its text
and pixels after that line. PDFium is not safe with threads, and here it has none.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, BinaryIO

MAX_MEMORY = 4 << 30  # of the process, bytes of address space
MAX_TEXT_CHARS = 2_000
_LONGEST_PT = 200 * 72.0  # a side beyond is no paper; PDF 2.0 allows more


def main() -> None:
    """Serve the requests until standard input ends."""
    _bound_memory()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    document = None
    try:
        document = _opened(json.loads(requests.readline()))
        _answer(answers, {"num_pages": len(document)})
    except Exception as error:
        _answer(answers, {"error": _sentence(error)})
        return
    for line in requests:
        try:
            request = json.loads(line)
            header, parts = _page(document, **request)
        except Exception as error:  # one page alone
            header, parts = {"error": _sentence(error)}, []
        _answer(answers, header, parts)


def _opened(request: dict[str, Any]) -> Any:
    import pypdfium2

    return pypdfium2.PdfDocument(request["path"], password=request["password"])


def _page(
    document: Any, *, page: int, size_px: int, max_pixels: int
) -> tuple[dict[str, Any], list[bytes]]:
    """One page, drawn so that its shorter side has `size_px`, within the bound of pixels."""
    opened = document[page]
    try:
        width, height = opened.get_size()
        if not min(width, height) > 0 or not max(width, height) <= _LONGEST_PT:
            raise ValueError(f"it measures {width:g} x {height:g} points")
        scale = min(size_px / min(width, height), math.sqrt(max_pixels / (width * height)))
        picture = opened.render(scale=scale, rev_byteorder=True, prefer_bgrx=False).to_pil()
        picture = picture.convert("RGB")
        try:
            found = opened.get_textpage()
            text = found.get_text_range(0, min(found.count_chars(), MAX_TEXT_CHARS))
        except Exception:  # shown beside the page only
            text = ""
    finally:
        opened.close()
    words = text[:MAX_TEXT_CHARS].encode("utf-8", "replace")
    pixels = picture.tobytes()
    header = {"width": picture.width, "height": picture.height, "text": len(words)}
    return header, [words, pixels]


def _answer(answers: BinaryIO, header: dict[str, Any], parts: list[bytes] | None = None) -> None:
    answers.write(json.dumps(header).encode() + b"\n")
    for part in parts or []:
        answers.write(part)
    answers.flush()


def _sentence(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "missing"
    if isinstance(error, MemoryError):
        return "it needs more than 4 GB of memory"
    return str(error)[:300] or type(error).__name__


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


if __name__ == "__main__":
    main()
