"""COCO's annotation files, read one object at a time: the largest has 470 MB.

Source: cocodataset.org, "Data format": an object with the lists images, annotations, categories.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from paligemma.errors import DataError

_CHUNK_CHARS = 1 << 20
# One object, such as an annotation with its outline.
MAX_VALUE_CHARS = 64 << 20
_LIST_BEGINS = object()
_FIRST_KEY = re.compile(rb'\s*\{\s*"(?:images|annotations|categories|info|licenses|type)"\s*:')
_SNIFFED_BYTES = 4096


def is_coco_file(path: Path) -> bool:
    """Whether a path is a file that begins as an annotation file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return bool(_FIRST_KEY.match(file.read(_SNIFFED_BYTES).removeprefix(b"\xef\xbb\xbf")))


def stream_lists(
    path: Path, names: Sequence[str], *, optional: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the objects of the named lists of a JSON object, in the order of the file.

    Args:
        path: path of the file, plain or ".gz".
        names: names of the lists to read; the rest of the file is passed over.
        optional: whether a list may be missing.

    Returns:
        (name of the list, object), one at a time.

    Raises:
        DataError: unreadable, not such an object, or a list is missing.
    """
    seen = set()
    try:
        with _open(path) as file:
            for name, value in _members(_Text(file)):
                if name not in names:
                    continue
                seen.add(name)
                if value is _LIST_BEGINS:
                    continue
                if not isinstance(value, dict):
                    raise DataError(f"{path}: {name} must be a list of objects, got {value!r:.80}")
                yield name, value
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as COCO annotations: {error}") from error
    if not optional and (missing := [name for name in names if name not in seen]):
        raise DataError(
            f"{path} must hold the lists {', '.join(names)}, but lacks {', '.join(missing)}; "
            "take an annotation file in COCO's format"
        )


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8-sig")


class _Text:
    """A text that is read as far as it is needed."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK_CHARS)
        self._text, self._at = self._text[self._at :] + chunk, 0
        if len(self._text) > MAX_VALUE_CHARS:
            raise ValueError(f"one value has more than {MAX_VALUE_CHARS} characters")
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self._at < len(self._text):
                if not (one := self._text[self._at]).isspace():
                    return one
                self._at += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """The next character, which must be one of those."""
        one = self.peek()
        if not one or one not in expected:
            raise ValueError(f"expected one of {expected!r}, got {one!r}")
        self._at += 1
        return one

    def value(self) -> Any:
        """The next whole value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # A number that ends where the text was cut may go on.
            if end == len(self._text) and self._more():
                continue
            self._at = end
            return value


def _members(text: _Text) -> Iterator[tuple[str, Any]]:
    """(key, value); of a list `_LIST_BEGINS` and then every element."""
    text.take("{")
    while text.peek() != "}":
        name = text.value()
        text.take(":")
        if text.peek() == "[":
            yield name, _LIST_BEGINS
            yield from ((name, value) for value in _elements(text))
        else:
            yield name, [text.value()]
        if text.peek() != "}":
            text.take(",")


def _elements(text: _Text) -> Iterator[Any]:
    text.take("[")
    while text.peek() != "]":
        yield text.value()
        if text.peek() != "]":
            text.take(",")
    text.take("]")
