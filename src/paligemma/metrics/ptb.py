"""Splits captions into tokens as the scorer of COCO captions does.

That scorer starts a Java program: the Penn Treebank tokeniser of Stanford CoreNLP 3.4.1 with
lower-casing, and deletes some of its tokens. This module does the same without Java.

Source: pycocoevalcap 1.2, tokenizer/ptbtokenizer.py; `ptb_rules` states what the program does.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from paligemma.errors import DataError
from paligemma.metrics.ptb_characters import DIGITS
from paligemma.metrics.ptb_rules import Kind, kinds_from

# Brackets arrive in lower case, so the four in capitals never match: brackets stay.
_BRACKETS = ("-LRB-", "-RRB-", "-LCB-", "-RCB-")
_MARKS = ("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";")
DELETED = frozenset((*_BRACKETS, *_MARKS, ""))
MAX_CAPTION_CHARACTERS = 20_000

# Addresses end at the hard ones, and can hold the soft ones.
_HARD_BREAK = re.compile("\r\n|[\n\r\u000c]")
_SOFT_BREAKS = "\u000b\u2028\u2029"
_LINE_BREAK = re.compile(f"\r\n|[\n\r\u000c{_SOFT_BREAKS}]")
# What is read piece by piece, and where a token, or what has to follow it, may reach over a space.
_PLAIN = re.compile("[A-Za-z ,']*[.]?")
# A letter by itself, and what an apostrophe may leave of a word.
_INITIAL = "(?:(?<![A-Za-z])|['\u0092\u2019;][A-Za-z]*)[A-Za-z]"
_REACHES_OVER_SPACE = re.compile(
    f"<|[\t\u00a0\u2000-\u200a\u3000{_SOFT_BREAKS}]|[{DIGITS})] +[{DIGITS}]|\\. +[.{DIGITS}]"
    f"|{_INITIAL}\\. +[A-Z<]"
)
# An end of a line that depends on how the next one begins: an initial, or an abbreviation that
# counts before a number.
_OPEN_END = re.compile(
    f"(?:{_INITIAL}|ca|no|op|pp|art|fig|nos|figs|prop)\\.[ \t\u00a0]*$", re.IGNORECASE
)


def ptb_tokenize(caption: str) -> str:
    """Split one caption into lower-case tokens, separated by single spaces, without some signs.

    A line break counts as a space. The caption is read by itself, while the Java program's tokens
    can depend on the next caption, see `ptb_tokenize_batch`.

    Raises:
        DataError: not a string, or longer than 20,000 characters.
    """
    return _tokenize(_LINE_BREAK.sub(" ", _checked(caption)), "")


def ptb_tokenize_batch(captions: Sequence[str], *, java_line_breaks: bool = False) -> list[str]:
    """Split each caption as `ptb_tokenize` does.

    Args:
        java_line_breaks: read them as the Java program reads a file of lines. Line breaks other
            than a newline then begin another caption, and shift all that follow (the last ones fall
            out); and a stop after an initial ("vitamin C.") is lost where the next caption begins
            with a word such as "A", one after "no." kept where it begins with a digit.
    """
    if not java_line_breaks:
        return [ptb_tokenize(caption) for caption in captions]
    lines = _HARD_BREAK.split("\n".join(_checked(one).replace("\n", " ") for one in captions))
    answers: list[str] = []
    following = ""
    for line in reversed(lines):
        parts = _tokenize(line, following).split("\n")
        answers += [part.strip(" ") for part in reversed(parts)]
        following = line if line.strip() else following
    return answers[::-1][: len(captions)]


def _checked(caption: str) -> str:
    if not isinstance(caption, str):
        raise DataError(f"a caption is a string, got {type(caption).__name__}")
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise DataError(
            f"a caption has at most {MAX_CAPTION_CHARACTERS} characters, got {len(caption)}; "
            "shorten it"
        )
    return caption


def _tokenize(line: str, following: str) -> str:
    is_open = following and _OPEN_END.search(line)
    if is_open or (not _PLAIN.fullmatch(line) and _REACHES_OVER_SPACE.search(line)):
        return " ".join(_tokens(line, following))
    return " ".join(filter(None, map(_piece, line.split(" "))))


@lru_cache(maxsize=1 << 16)
def _piece(text: str) -> str:
    return " ".join(_tokens(text, ""))


def _tokens(line: str, following: str) -> Iterator[str]:
    """Yield the kept tokens of one line, soft breaks too; `following` is the next line."""
    text = f"{line}\n{following}"
    position, end, visible = 0, len(line), len(line.rstrip())
    while position < end:
        token_end, kind = _longest(text, position)
        if kind is None:
            # A character that the program does not know is left out.
            if text[position] in _SOFT_BREAKS:
                yield "\n"
            position += 1
            continue
        token = kind.rewrite(text[position:token_end]).lower()
        if token_end >= visible:
            # An address can hold a no-break space, and the scorer strips lines.
            token = token.rstrip()
        if token not in DELETED:
            yield token
        position = token_end


def _longest(text: str, position: int) -> tuple[int, Kind | None]:
    """Find the end of the token at this position, and its kind."""
    longest, token_end, best = -1, position, None
    for kind in kinds_from(text[position]):
        found = kind.pattern.match(text, position)
        if found and found.end() > longest:
            longest, token_end, best = found.end(), found.end(1), kind
    return token_end, best
