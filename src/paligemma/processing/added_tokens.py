"""Tokens that a fine-tune added behind the vocabulary, from the files transformers leaves."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma import json_file
from paligemma.errors import TokenizerError

logger = logging.getLogger(__name__)

IMAGE_PIECE = "<image>"  # added by transformers after the last id; no part of the vocabulary
ADDED_NAME = "added_tokens.json"
_CONFIG_NAME = "tokenizer_config.json"
_FULL_NAME = "tokenizer.json"
_MAX_CONFIG_BYTES = 16 << 20
MAX_JSON_BYTES = 48 << 20
# Their list stands before the vocabulary, which takes most of the file.
_MAX_LIST_CHARACTERS = 16 << 20
_MAX_TOKENS = 1 << 16
_MAX_TEXT = 1000


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """One token.

    Attributes:
        id: its id.
        text: what it stands for, and how it is typed.
        lstrip, rstrip: whether it takes in the whitespace before and behind it.
        single_word: whether it is found only where no letter or digit adjoins it.
    """

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def added_tokens(folder: Path) -> list[AddedToken]:
    """The tokens that the files of a folder list, by id; also those that the vocabulary has.

    A file that cannot be read is left aside with a warning.

    Raises:
        TokenizerError: two tokens share an id.
    """
    found: dict[int, AddedToken] = {}
    for name, listed in (
        (_FULL_NAME, _in_full),
        (_CONFIG_NAME, _in_config),
        (ADDED_NAME, _in_names),
    ):
        path = folder / name
        if not path.is_file():
            continue
        try:
            tokens = list(listed(path))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is left aside, it lists no tokens (%s)", path, str(error)[:200])
            continue
        for token in tokens:
            known = found.setdefault(token.id, token)
            if known.text != token.text:
                raise TokenizerError(
                    f"an id must stand for one token, {token.id} is {known.text!r} and, in "
                    f"{path}, {token.text!r}; take all files of the tokenizer from one save"
                )
    return sorted(found.values(), key=lambda token: token.id)


def added_list(text: str) -> Any:
    """The list of a tokenizer.json, without parsing the rest where it stands in its usual place."""
    head = text[:_MAX_LIST_CHARACTERS]
    match = re.search(r'"added_tokens"\s*:\s*(?=\[)', head)
    if match:
        try:
            return json.JSONDecoder().raw_decode(head, match.end())[0]
        except (ValueError, RecursionError):
            pass
    return json_file.parse_json(text).get("added_tokens") or []


def _in_full(path: Path) -> Iterator[AddedToken]:
    with open(path, "rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it may have {MAX_JSON_BYTES} bytes and has more")
    return _checked((row["id"], row) for row in added_list(data.decode()))


def _in_config(path: Path) -> Iterator[AddedToken]:
    body = json_file.read_json(path, max_bytes=_MAX_CONFIG_BYTES)
    return _checked((int(key), row) for key, row in body.get("added_tokens_decoder", {}).items())


def _in_names(path: Path) -> Iterator[AddedToken]:
    body = json_file.read_json(path)
    return _checked((token, {"content": text}) for text, token in body.items())


def _checked(rows: Iterable[tuple[Any, Any]]) -> Iterator[AddedToken]:
    for number, (token, row) in enumerate(rows, start=1):
        text = row["content"]
        is_id = isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31
        if not is_id or not isinstance(text, str) or not 0 < len(text) <= _MAX_TEXT:
            raise ValueError(f"a token has an id and a text, got {token!r:.40} {text!r:.40}")
        if number > _MAX_TOKENS:
            raise ValueError(f"it may list {_MAX_TOKENS} tokens and lists more")
        flags = {name: row.get(name) is True for name in ("lstrip", "rstrip", "single_word")}
        yield AddedToken(id=token, text=text, **flags)


class AddedPattern:
    """Finds added tokens in text, the longest first.

    Args:
        tokens: at least one.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = sorted(tokens, key=lambda token: len(token.text), reverse=True)
        self._pattern = re.compile("|".join(f"({_literal(token)})" for token in self._tokens))

    def split(self, text: str) -> Iterator[str | int]:
        """Ordinary text and ids of added tokens, in order."""
        done = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[(match.lastindex or 0) - 1]
            before = text[done : match.start()]
            yield before.rstrip() if token.lstrip else before
            yield token.id
            done = match.end()
            while token.rstrip and text[done : done + 1].isspace():
                done += 1
        yield text[done:]


def _literal(token: AddedToken) -> str:
    words = (r"(?<!\w)", r"(?!\w)") if token.single_word else ("", "")
    return words[0] + re.escape(token.text) + words[1]
